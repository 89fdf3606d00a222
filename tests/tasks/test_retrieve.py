"""Two-stage retrieval against the reference's algorithm, written out one pair at a time."""

from __future__ import annotations

import pytest
import torch
from factories import random_med, tiny_vocabulary
from torch import Tensor

from blip_fast.images import ImageOptions
from blip_fast.med import blip as med
from blip_fast.tasks.model import Blip
from blip_fast.tasks.nearest import Ranking, nearest
from blip_fast.tasks.stream import memory_bytes
from blip_fast.text import Tokenizer

TEXTS = ["a red ball", "the dog", "two cats on a table", "who", "a big house", "water", "three"]


@pytest.fixture
def model() -> Blip:
    tokenizer = Tokenizer(tiny_vocabulary())
    return Blip(random_med("retrieval"), tokenizer, "random", "", True, ImageOptions(size=32))


def published(cosines: Tensor, logits: Tensor, k: int, rank_by: str) -> Tensor:
    """[Q, N] scores as the authors' evaluation leaves them: -100 where ITM was not asked."""
    scores = torch.full_like(cosines, -100.0)
    for query, row in enumerate(cosines):
        for place in row.topk(k).indices.tolist():
            itm = logits[query, place]
            scores[query, place] = itm + row[place] if rank_by == "itm+itc" else itm
    return scores


@pytest.mark.parametrize("rank_by", ["itm+itc", "itm"])
def test_both_directions_are_as_published(model: Blip, rank_by: str) -> None:
    images = torch.randn(6, 3, 32, 32)
    cosines, logits = model.similarity(images, TEXTS), model.match(images, TEXTS, score="logit")
    found = model.retrieve(
        images, TEXTS, texts_per_image=3, images_per_text=4, rank_by=rank_by, batch_size=4
    )
    for ranking, expected in (
        (found.texts, published(cosines, logits, 3, rank_by)),
        (found.images, published(cosines.T, logits.T, 4, rank_by)),
    ):
        best = expected.topk(ranking.places.shape[1])
        assert torch.equal(ranking.places, best.indices)
        torch.testing.assert_close(ranking.scores, best.values, rtol=1e-4, atol=1e-5)
    # ITM changes the order that ITC gave, or the second stage would not show.
    first = model.retrieve(images, TEXTS, texts_per_image=3, images_per_text=4, rank_by="itc")
    assert torch.equal(first.texts.places, cosines.topk(3).indices)
    assert not torch.equal(first.images.places, found.images.places)


@pytest.mark.parametrize(("held", "seen"), [(2, 2), (64, 1)])
def test_each_memory_is_made_once_within_the_budget(
    model: Blip, monkeypatch: pytest.MonkeyPatch, held: int, seen: int
) -> None:
    images, made, looks = torch.randn(7, 3, 32, 32), [], []
    project, look = med.project_memory, model.med.vision.forward

    def counted(reader: object, tokens: Tensor) -> Tensor:
        made.append(len(tokens))
        return project(reader, tokens)

    def seeing(pixels: Tensor) -> Tensor:
        looks.append(len(pixels))
        return look(pixels)

    monkeypatch.setattr(med, "project_memory", counted)
    monkeypatch.setattr(model.med.vision, "forward", seeing)
    budget = held * memory_bytes(model.med, 32)
    found = model.retrieve(
        images, TEXTS, texts_per_image=7, images_per_text=7, memory_budget=budget
    )
    assert sum(made) == 7 and max(made) <= max(1, held // 2)
    # Tokens that fit are kept; those of a tiny model are as large as half its memories.
    assert 7 <= sum(looks) <= 14 if seen == 2 else sum(looks) == 7
    torch.testing.assert_close(
        found.images.scores,
        model.retrieve(model.see(images), TEXTS).images.scores,
        rtol=1e-4,
        atol=1e-5,
    )


def test_one_direction_judges_its_own_pairs_alone(
    model: Blip, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, match_logits = [], model.med.match_logits

    def counted(text: object, *rest: object) -> Tensor:
        judged.append(len(text))  # type: ignore[arg-type]
        return match_logits(text, *rest)

    monkeypatch.setattr(model.med, "match_logits", counted)
    found = model.retrieve(
        torch.randn(6, 3, 32, 32), "the dog", texts_per_image=0, images_per_text=2
    )
    assert sum(judged) == 2
    assert found.texts.places.shape == (6, 0) and found.images.places.shape == (1, 2)


def test_an_unreadable_image_has_no_texts_and_is_found_by_none(model: Blip) -> None:
    images = [torch.randn(3, 32, 32), b"no image", torch.randn(3, 32, 32)]
    with pytest.warns(UserWarning, match="image 1"):
        found = model.retrieve(images, TEXTS[:2])
    assert found.texts.places[1].tolist() == [-1, -1] and found.texts.scores[1].isnan().all()
    assert all(sorted(row) == [-1, 0, 2] and row[2] == -1 for row in found.images.places.tolist())
    assert found.images.scores.isnan().tolist() == [[False, False, True]] * 2


def test_what_makes_no_sense_is_refused(model: Blip) -> None:
    with pytest.raises(ValueError, match="rank_by is 'best'"):
        model.retrieve(torch.randn(1, 3, 32, 32), TEXTS, rank_by="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images_per_text -1"):
        model.retrieve(torch.randn(1, 3, 32, 32), TEXTS, images_per_text=-1)


def test_nearest_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, collection = torch.randn(9, 8), torch.randn(20, 8)
    collection[4] = torch.nan
    found: Ranking = nearest(queries, collection, 5)
    monkeypatch.setattr("blip_fast.tasks.nearest._AT_ONCE", 40)
    assert torch.equal(nearest(queries, collection, 5).places, found.places)
    others = [place for place in range(20) if place != 4]
    expected = (queries @ collection[others].T).topk(5)
    assert torch.equal(found.places, torch.tensor(others)[expected.indices])
    assert nearest(queries, collection[:0], 5).places.shape == (9, 0)
    assert nearest(queries, collection[3:5], 5).places[:, 1].tolist() == [-1] * 9
