"""Images by the thousand: seen a few at a time, dropped when done, the same captions throughout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import random_med, tiny_vocabulary
from torch import Tensor

from blip_fast.images import ImageOptions, Status
from blip_fast.med.blip import MED
from blip_fast.med.vision import VisionTransformer
from blip_fast.tasks.captions import Outcome
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer

SEP = 102
SETTINGS: dict[str, Any] = {"max_length": 12, "min_length": 3, "num_beams": 2}


def captioner() -> Blip:
    med = random_med("caption")
    with torch.no_grad():
        med.lm_head.bias[SEP] += 2.5  # so that captions end at different lengths
    return Blip(med, Tokenizer(tiny_vocabulary()), "random", "", True, ImageOptions(size=32))


def pictures(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(number, 3, 32, 32, generator=generator))


def tokens(outcomes: list[Outcome]) -> list[list[tuple[int, ...]]]:
    return [[text.token_ids for text in outcome.texts] for outcome in outcomes]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the vision transformer got."""
    sizes, forward = [], VisionTransformer.forward

    def counted(self: VisionTransformer, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(VisionTransformer, "forward", counted)
    return sizes


def test_memories_have_a_fixed_number_of_places(
    monkeypatch: pytest.MonkeyPatch, seen: list[int]
) -> None:
    model, images = captioner(), pictures(23)
    expected = [model.caption(image, **SETTINGS)[0] for image in images]
    rooms, room_for = [], MED.room_for

    def watched(self: MED, number: int, size: int) -> Tensor:
        rooms.append(number)
        return room_for(self, number, size)

    monkeypatch.setattr(MED, "room_for", watched)
    seen.clear()
    captions = model.caption(images, slots=4, batch_size=3, **SETTINGS)
    assert [c[0].token_ids for c in captions] == [e[0].token_ids for e in expected]
    assert len({len(c[0].token_ids) for c in captions}) > 2
    assert rooms == [5] and sum(seen) == 23 and max(seen) <= 3


def test_captions_come_in_order_before_all_images_are_seen(seen: list[int]) -> None:
    model, images = captioner(), pictures(40)
    stream = model.caption_stream(images, slots=2, batch_size=2, **SETTINGS)
    assert seen == []
    first = next(stream)
    assert first.status is Status.SUCCESS and sum(seen) <= 6
    together = model.caption(images, slots=40, **SETTINGS)
    assert tokens([first, *stream]) == [[text.token_ids for text in row] for row in together]


def test_a_picture_that_fails_is_passed_in_its_place(seen: list[int]) -> None:
    model, images = captioner(), pictures(6)
    mixed: list[Any] = [b"", *images[:3], "gone.jpg", b"no picture", *images[3:], b""]
    outcomes = list(model.caption_stream(mixed, slots=2, batch_size=2, **SETTINGS))
    bad = {0: Status.FAILED_TO_READ, 4: Status.FAILED_TO_READ, 5: Status.FAILED_TO_DECODE}
    for place, outcome in enumerate(outcomes):
        assert outcome.status == {**bad, 9: Status.FAILED_TO_READ}.get(place, Status.SUCCESS)
        assert bool(outcome.texts) is (outcome.error == "")
    good = [outcome for outcome in outcomes if outcome.texts]
    assert tokens(good) == [[model.caption(i, **SETTINGS)[0][0].token_ids] for i in images]
    assert list(model.caption_stream([b"", b""], **SETTINGS))[1].status is Status.FAILED_TO_READ


def no_memory_for(monkeypatch: pytest.MonkeyPatch, most: int, poison: Tensor | None) -> list[int]:
    """Vision fails on more than `most` images, and where the poisonous one is among them."""
    tried, forward = [], VisionTransformer.forward

    def tight(self: VisionTransformer, images: Tensor) -> Tensor:
        tried.append(len(images))
        if len(images) > most or (poison is not None and (images == poison).all((1, 2, 3)).any()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.")
        return forward(self, images)

    monkeypatch.setattr(VisionTransformer, "forward", tight)
    return tried


def test_fewer_images_are_seen_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = captioner(), pictures(12)
    expected = model.caption(images, **SETTINGS)
    tried = no_memory_for(monkeypatch, 2, None)
    captions = model.caption(images, slots=8, batch_size=8, **SETTINGS)
    assert [c[0].token_ids for c in captions] == [e[0].token_ids for e in expected]
    assert tried[:3] == [8, 4, 2] and max(tried[2:]) == 2
    tried.clear()
    model.caption(images, slots=8, batch_size=8, **SETTINGS)
    assert max(tried) == 2, "what was learned was forgotten"


def test_an_image_that_does_not_fit_alone_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = captioner(), pictures(12)
    expected = model.caption(images, **SETTINGS)
    tried = no_memory_for(monkeypatch, 8, images[5])
    captions = model.caption(images, slots=3, batch_size=3, **SETTINGS)
    assert captions.status[5] is Status.TOO_LARGE and "out of memory" in captions.errors[5]
    assert captions[5] == () and captions.texts[5] == ""
    for place, (row, other) in enumerate(zip(captions, expected, strict=True)):
        assert place == 5 or [c.token_ids for c in row] == [c.token_ids for c in other]
    assert tried.count(1) >= 2, "it is tried alone, first beside others, then with nothing alive"


def test_answers_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    med = random_med("vqa")
    model = Blip(med, Tokenizer(tiny_vocabulary()), "random", "", True, ImageOptions(size=32))
    images = pictures(6)
    for candidates in (None, ["red", "two", "the dog"]):
        expected = model.answer(images, "what is red", candidates)
        with monkeypatch.context() as context:
            no_memory_for(context, 2, images[4])
            answers = model.answer(images, "what is red", candidates, batch_size=6)
        assert answers.status[4] is Status.TOO_LARGE
        for place, (row, other) in enumerate(zip(answers, expected, strict=True)):
            assert place == 4 or row[0].token_ids == other[0].token_ids


def test_settings_are_checked_at_once() -> None:
    model, images = captioner(), pictures(1)
    for settings, message in (
        ({"slots": 0}, "slots is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"forbidden": ["the dog", " "]}, "the phrase ' ' holds no word"),
        ({"early_stopping": "always"}, "early_stopping 'always'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.caption_stream(images, **settings)


def test_forbidden_phrases_are_not_written_and_repeats_are_flagged() -> None:
    model, images = captioner(), pictures(8)
    plain = model.caption(images, keep_prompt=True, **SETTINGS)
    words = sorted({word for text in plain.texts for word in text.split()} - {"a", "of"})
    steered = model.caption(images, forbidden=words, **SETTINGS)
    ids = {phrase for phrase in model.tokenizer.encode_phrases(words) if len(phrase) == 1}
    assert ids
    for row in steered:
        assert not {(i,) for i in row[0].token_ids[4:]} & ids
    long = {**SETTINGS, "min_length": 12, "num_beams": 1}
    flags = [c[0].degenerate for c in model.caption(images, **long)]
    assert True in flags
    assert model.caption(images, **long)[flags.index(True)][0].to_dict()["degenerate"] is True
