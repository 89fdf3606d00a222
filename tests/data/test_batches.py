from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_fast.data import chunks, read_batches, stable_seed
from blip_fast.images import ImageOptions, Status


def test_failures_stay_in_their_place(tmp_path: Path) -> None:
    for name, value in (("a.png", 10), ("c.png", 30), ("d.png", 40)):
        Image.new("RGB", (9, 5), (value,) * 3).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    sources = [tmp_path / f"{letter}.png" for letter in "abcd"]
    first, second = read_batches(sources, ImageOptions(size=16), 2)
    assert first.places == [0] and second.places == [0, 1]
    assert first.pictures[1].status is Status.FAILED_TO_DECODE
    assert first.pixels.shape == (1, 3, 16, 16) and first.pixels.dtype == torch.uint8
    assert [int(pixels.max()) for pixels in second.pixels] == [30, 40]


def test_a_batch_of_failures_has_no_pixels(tmp_path: Path) -> None:
    (batch,) = read_batches([tmp_path / "gone.png"], ImageOptions(size=16), 4)
    assert batch.pixels is None and batch.places == []
    assert batch.pictures[0].status is Status.FAILED_TO_READ


def test_chunks() -> None:
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match="batch size is 0"):
        list(chunks([1], 0))


def test_seeds_are_fixed_and_differ() -> None:
    assert stable_seed("a.jpg", 0) == 8120102122955035375
    assert len({stable_seed(key, seed) for key in ("a", "b", "猫") for seed in range(3)}) == 9
    assert all(0 <= stable_seed(str(i), 0) < 2**63 for i in range(100))
