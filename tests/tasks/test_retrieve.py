"""Two-stage retrieval against every pair judged one by one, and what it holds and looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import random_med, tiny_vocabulary
from PIL import Image
from torch import Tensor

from blip_fast.images import ImageOptions
from blip_fast.med.blip import MED
from blip_fast.tasks.model import Blip
from blip_fast.tasks.retrieve import Ranking, candidates
from blip_fast.text import Tokenizer

TEXTS = ["a red cat", "the blue dog on a box", "two birds", "a tree", "one car in the park", "sky"]
MEMORY = 2 * 17 * 2 * 128 * 4  # bytes of one image: layers, tokens, keys and values, width, float32


def blip() -> Blip:
    med = random_med("retrieval")
    return Blip(med, Tokenizer(tiny_vocabulary()), "random", "", True, ImageOptions(size=32))


@pytest.fixture
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(9)]


def expected(scores: Tensor, cosines: Tensor, k: int) -> Ranking:
    """Rows are queries: the k nearest by cosine, ordered by their scores."""
    found = cosines.argsort(dim=1, descending=True, stable=True)[:, :k]
    values, order = scores.gather(1, found).sort(dim=1, descending=True, stable=True)
    return Ranking(found.gather(1, order), values)


@pytest.mark.parametrize("rank_by", ["itm+itc", "itm", "itc"])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_both_directions_are_those_of_every_pair(
    images: list[np.ndarray], k: int, rank_by: str
) -> None:
    model = blip()
    cosines = model.similarity(images, TEXTS)
    logits = model.match(images, TEXTS, score="logit")
    scores = {"itm+itc": logits + cosines, "itm": logits, "itc": cosines}[rank_by]
    found = model.retrieve(images, TEXTS, k=k, rank_by=rank_by)
    for ours, truth in (
        (found.texts, expected(scores, cosines, k)),
        (found.images, expected(scores.T, cosines.T, k)),
    ):
        assert torch.equal(ours.places, truth.places)
        torch.testing.assert_close(ours.scores, truth.scores, rtol=1e-5, atol=1e-5)


def test_a_budget_changes_nothing_but_what_is_held(
    images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = blip()
    generous = model.retrieve(images, TEXTS, k=3)
    held: list[int] = []
    seen: list[int] = []
    memory_of, vision = MED.memory_of, model.med.vision.forward

    def watch(self: MED, tokens: Tensor):
        memory = memory_of(self, tokens)
        held.append(memory.pairs.nbytes)
        return memory

    monkeypatch.setattr(MED, "memory_of", watch)
    monkeypatch.setattr(model.med.vision, "forward", lambda x: seen.append(len(x)) or vision(x))
    tight = model.retrieve(images, TEXTS, k=3, memory_budget=8 * MEMORY, batch_size=2)
    for one, other in ((generous.images, tight.images), (generous.texts, tight.texts)):
        assert torch.equal(one.places, other.places)
        torch.testing.assert_close(one.scores, other.scores)
    assert max(held) <= 4 * MEMORY and sum(held) == 9 * MEMORY
    assert sum(seen) == 9  # their tokens fit the other half
    seen.clear()
    model.retrieve(images, TEXTS, k=3, memory_budget=MEMORY // 2, batch_size=2)
    assert 9 < sum(seen) <= 18  # some were looked at again, none more than twice


def test_what_was_seen_can_be_searched(images: list[np.ndarray]) -> None:
    model = blip()
    fresh, seen = model.retrieve(images, TEXTS, k=3), model.retrieve(model.see(images), TEXTS, k=3)
    assert torch.equal(fresh.images.places, seen.images.places)
    assert torch.equal(fresh.texts.places, seen.texts.places)


def test_an_image_that_cannot_be_read_is_found_by_nobody(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, level in zip(paths, (10, 90, 200), strict=True):
        Image.new("RGB", (32, 32), (level, 255 - level, 0)).save(path)
    model = blip()
    alone = model.retrieve([paths[0], paths[2]], TEXTS, k=5)
    paths[1].write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"1 images could not be read: .*b\.png"):
        found = model.retrieve(paths, TEXTS, k=5)
    assert found.images.places.shape == (6, 3) and (found.images.places[:, 2] == -1).all()
    assert (found.images.scores[:, 2] == -torch.inf).all()
    whole = torch.tensor([0, 2])[alone.images.places]
    assert torch.equal(found.images.places[:, :2], whole)
    assert (found.texts.places[1] == -1).all() and (found.texts.places[0] >= 0).all()


def test_candidates_of_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from blip_fast.tasks import retrieve

    images = torch.nn.functional.normalize(torch.randn(23, 8), dim=1)
    images[5] = images[17]  # equals: the first wins
    texts = torch.nn.functional.normalize(torch.randn(7, 8), dim=1)
    whole = candidates(images, texts, 6)
    monkeypatch.setattr(retrieve, "_IMAGES_PER_PART", 5)
    parts = candidates(images, texts, 6)
    for one, other in ((whole.images, parts.images), (whole.texts, parts.texts)):
        assert torch.equal(one.places, other.places)
        torch.testing.assert_close(one.scores, other.scores)
    truth = (texts @ images.T).argsort(dim=1, descending=True, stable=True)[:, :6]
    assert torch.equal(whole.images.places, truth)


def test_what_cannot_be_is_refused(images: list[np.ndarray]) -> None:
    model = blip()
    with pytest.raises(ValueError, match="k is 0"):
        model.retrieve(images, TEXTS, k=0)
    with pytest.raises(ValueError, match="rank_by is 'best'"):
        model.retrieve(images, TEXTS, rank_by="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="9 images and 0 texts"):
        model.retrieve(images, [])
