"""Whatever form arguments come in: it is taken as what it is, or refused with the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from factories import random_med, tiny_vocabulary
from numpy.random import default_rng
from PIL import Image

import blip_fast
from blip_fast.config import Kind
from blip_fast.images import ImageOptions, Status
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer

SETTINGS = {"max_length": 10, "min_length": 4}
PIXELS = default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)


def blip(kind: Kind = "pretrain") -> Blip:
    tokenizer = Tokenizer(tiny_vocabulary())
    return Blip(random_med(kind), tokenizer, "random", "", True, ImageOptions(size=32))


@pytest.mark.parametrize(
    "form",
    [
        iter,
        tuple,
        lambda pixels: {place: one for place, one in enumerate(pixels)}.values(),
        lambda pixels: pixels,
        lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2),
        lambda pixels: map(Image.fromarray, pixels),
    ],
    ids=["iterator", "tuple", "view", "array", "tensor", "map"],
)
def test_several_images_in_any_form(form: Callable[[Any], Any]) -> None:
    model = blip()
    features = model.embed_images(list(PIXELS))
    torch.testing.assert_close(model.embed_images(form(PIXELS)), features, atol=2e-2, rtol=0)
    assert model.caption(form(PIXELS), **SETTINGS).texts == [
        model.caption(one, **SETTINGS).texts[0] for one in PIXELS
    ]
    assert model.match(form(PIXELS), ["the dog"]).shape == (3, 1)
    assert model.retrieve(form(PIXELS), ["the dog"]).images.places.shape == (1, 3)
    assert len(model.see(form(PIXELS))) == 3


def test_names_in_an_array_are_names() -> None:
    assert blip().caption(np.array(["/no/a.jpg", "/no/b.jpg"])).status == (
        Status.FAILED_TO_READ,
        Status.FAILED_TO_READ,
    )


def test_bytes_of_any_type_are_one_image() -> None:
    buffer = BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "PNG")
    data, model = buffer.getvalue(), blip()
    expected = model.caption(data, **SETTINGS)
    for form in (bytearray(data), memoryview(data)):
        assert model.caption(form, **SETTINGS) == expected


@pytest.mark.parametrize("strange", [BytesIO(b"some bytes"), {"a": PIXELS[0]}, None, 7])
def test_what_is_no_image_is_a_row_that_says_so(strange: Any) -> None:
    captions = blip().caption(strange, **SETTINGS)
    assert captions.status == (Status.FAILED_TO_READ,)
    assert f"a {type(strange).__name__} is not an image" in captions.errors[0]


def test_texts_in_any_form() -> None:
    model, texts = blip(), ["the dog", "a ball"]
    expected = model.match(PIXELS, texts)
    for form in (iter(texts), tuple(texts), np.array(texts)):
        assert model.match(PIXELS, form).equal(expected)
    prompts = ["the", "a", "dog"]
    expected_texts = model.caption(PIXELS, prompts, **SETTINGS).texts
    assert model.caption(PIXELS, iter(prompts), **SETTINGS).texts == expected_texts
    assert blip("vqa").answer(PIXELS, iter(texts + ["dog"]), iter(["dog", "ball"])).texts


def test_what_is_no_text_is_named() -> None:
    with pytest.raises(ValueError, match="text 1 is None, a NoneType"):
        blip().match(PIXELS, ["the dog", None])
    with pytest.raises(ValueError, match="text 0 is None"):
        blip().caption(PIXELS, None)


def test_a_word_that_is_forbidden_is_no_list_of_letters() -> None:
    model = blip()
    first = model.tokenizer.decode(model.caption(PIXELS[0], "", **SETTINGS)[0][0].token_ids[1:2])
    alone = model.caption(PIXELS[0], "", forbidden=first, **SETTINGS)
    assert alone == model.caption(PIXELS[0], "", forbidden=[first], **SETTINGS)


def test_pairs_in_any_form() -> None:
    model, texts, pairs = blip(), ["the dog", "a ball"], [(2, 1), (0, 0)]
    expected = model.match(PIXELS, texts, pairs)
    for form in (iter(pairs), np.array(pairs), torch.tensor(pairs)):
        assert model.match(PIXELS, texts, form).equal(expected)
    assert model.match(PIXELS, texts, []).shape == (0,)
    with pytest.raises(ValueError, match=r"pairs are \[2, 3\]"):
        model.match(PIXELS, texts, [(0, 1, 0), (0, 1, 1)])


def test_seeds_in_any_form() -> None:
    model = blip()
    settings = {**SETTINGS, "top_p": 0.9}
    expected = model.caption(PIXELS, seed=3, **settings)
    for form in (np.int64(3), [3, 4, 5], np.array([3, 4, 5]), iter([3, 4, 5])):
        assert model.caption(PIXELS, seed=form, **settings) == expected
    with pytest.raises(ValueError, match="seed 1.5 is not an integer"):
        model.caption(PIXELS, seed=1.5, **settings)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.caption(PIXELS, batch_size=0),
        lambda model: model.caption(PIXELS, slots=0),
        lambda model: model.see(PIXELS, batch_size=-1),
        lambda model: model.match(PIXELS, "dog", batch_size=2.0),
        lambda model: model.match(PIXELS, "dog", memory_budget=0),
        lambda model: model.match(PIXELS, "dog", max_length=0),
        lambda model: model.embed_images(PIXELS, batch_size=-2),
        lambda model: blip("vqa").answer(PIXELS, "the dog", ["dog"], k=0),
    ],
)
def test_numbers_that_are_too_small_are_refused(call: Callable[[Blip], Any]) -> None:
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        call(blip())


def test_lengths_that_the_model_does_not_have_are_refused() -> None:
    model = blip()
    positions = model.config.text.max_positions
    for length in (2, positions + 1):
        with pytest.raises(ValueError, match=f"max_length is {length}; .* 3 to {positions} tokens"):
            model.match(PIXELS, "the dog", max_length=length)
    for settings in ({}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match=f"has positions for {positions} tokens"):
            model.caption(PIXELS, max_length=positions + 1, **settings)
    longest = model.caption(PIXELS[0], max_length=positions, min_length=positions)
    assert len(longest[0][0].token_ids) == positions


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="score is 'percent'; it must be one of probability"):
        blip().match(PIXELS, "the dog", score="percent")


def test_pairs_of_images_that_were_seen_are_compared() -> None:
    model = blip("nlvr")
    expected = model.compare(PIXELS[:2], PIXELS[1:], "the dog")
    left, right = model.see(PIXELS[:2]), model.see(PIXELS[1:])
    found = model.compare(left, right, "the dog", batch_size=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="see both, or neither"):
        model.compare(left, PIXELS[1:], "the dog")


def test_half_a_character_costs_neither_its_text_nor_its_neighbours() -> None:
    model = blip()
    expected = model.match(PIXELS, ["the dog", "a ball"])
    assert model.match(PIXELS, ["the \ud800dog\udfff", "a ball"]).equal(expected)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", 99])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    with pytest.raises(ValueError, match="device .* cannot be used here"):
        blip_fast.load("scenes", device=device)


@pytest.mark.parametrize("dtype", [torch.int8, "fp32", np.float32])
def test_a_dtype_that_is_none_of_ours_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype is .*; it must be one of float32"):
        blip_fast.load("scenes", dtype=dtype)


def test_a_memory_without_features_is_refused_where_they_are_needed() -> None:
    model, memory = blip(), blip("caption").see(PIXELS)
    for call in (model.embed_images, partial(model.retrieve, texts="dog")):
        with pytest.raises(ValueError, match="seen by a model without ITC features"):
            call(memory)


def test_a_memory_is_shown_in_a_line() -> None:
    shown = repr(blip().see(PIXELS))
    assert re.fullmatch(
        r"ImageMemory\(3 images of \d+ tokens, .* MB, torch.float32 on cpu\)", shown
    )
