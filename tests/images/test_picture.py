"""Many pictures: order, names, laziness, and batches that refuse what does not belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from blip_fast.images import (
    ImageError,
    ImageOptions,
    Picture,
    Status,
    read_picture,
    read_pictures,
    stack,
)

OPTIONS = ImageOptions(size=16)


def grey(level: int) -> np.ndarray:
    return np.full((20, 30), level, np.uint8)


def test_in_order_with_names(tmp_path: Path) -> None:
    sources = [grey(1), tmp_path / "none.jpg", b"no image", grey(4)]
    pictures = list(read_pictures(sources, OPTIONS, workers=3))
    assert [p.name for p in pictures] == ["image 0", str(sources[1]), "image 2", "image 3"]
    assert [str(p.status) for p in pictures] == [
        "success", "failed_to_read", "failed_to_decode", "success",
    ]  # fmt: skip
    batch = stack([pictures[0], pictures[3]])
    assert batch.shape == (2, 3, 16, 16) and batch.dtype == torch.uint8 and batch.is_contiguous()
    assert batch[:, 0, 0, 0].tolist() == [1, 4]
    assert list(read_pictures([], OPTIONS)) == []
    assert read_picture(grey(1), OPTIONS, name="mine").name == "mine"


def test_lazy_and_bounded() -> None:
    taken = []

    def sources() -> Iterator[np.ndarray]:
        for level in range(100):
            taken.append(level)
            yield grey(level)

    pictures = read_pictures(sources(), OPTIONS, workers=2)
    assert taken == []
    for asked in range(1, 11):
        next(pictures)
        assert len(taken) <= asked + 4
    pictures.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read_pictures")]


def test_a_fault_of_the_sources_reaches_the_caller() -> None:
    def sources() -> Iterator[np.ndarray]:
        yield grey(1)
        raise RuntimeError("the list broke")

    with pytest.raises(RuntimeError, match="the list broke"):
        list(read_pictures(sources(), OPTIONS))


def test_workers_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="workers is 0"):
        read_pictures([], OPTIONS, workers=0)


def test_stack_refuses_mixtures() -> None:
    first, small, normalised, failed = (
        read_picture(grey(1), OPTIONS),
        read_picture(grey(1), ImageOptions(size=8), "small"),
        read_picture(torch.zeros(3, 16, 16), OPTIONS, "ready"),
        read_picture(b"", OPTIONS, "empty"),
    )
    cases: list[tuple[list[Picture], str]] = [
        ([first, normalised], r"torch\.uint8.*ready.*torch\.float32"),
        ([first, small], r"\[3, 16, 16\].*small.*\[3, 8, 8\]"),
        ([first, failed], r"1 of 2.*empty: failed_to_read"),
        ([], "at least one"),
    ]
    for pictures, message in cases:
        with pytest.raises(ValueError, match=message):
            stack(pictures)
    assert stack([normalised, normalised]).dtype == torch.float32


@pytest.mark.parametrize(
    "setting",
    [
        {"size": 0}, {"size": 3.5}, {"decoder": "opencv"}, {"background": "pink"},
        {"background": (1, 2)}, {"background": (1, 2, 256)}, {"max_pixels": 0}, {"max_bytes": -1},
    ],
)  # fmt: skip
def test_options_are_checked(setting: dict[str, object]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=name) as caught:
        ImageOptions(**setting)
    assert repr(value) in str(caught.value)


def test_status_is_its_word() -> None:
    words = "success failed_to_read failed_to_decode too_large empty_text failed_score"
    assert " ".join(map(str, Status)) == words == " ".join(f"{s}" for s in Status)
    error = ImageError(Status.TOO_LARGE, "why")
    assert isinstance(error, ValueError) and (error.status, str(error)) == ("too_large", "why")
