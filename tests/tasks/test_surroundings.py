"""What a caller has set for all of torch does not change what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from factories import random_med, tiny_vocabulary
from numpy.random import default_rng

import blip_fast
from blip_fast.images import ImageOptions
from blip_fast.med.quantize import quantize_int8
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer

PIXELS = default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.autocast("cpu", dtype=torch.float16),
        torch.enable_grad,
        torch.inference_mode,
    ],
    ids=["float64", "bfloat16", "autocast_bfloat16", "autocast_float16", "grad", "inference"],
)
def test_the_same_comes_out(dtype: str, surroundings: Any) -> None:
    model, vqa, pairs = (blip(kind, dtype) for kind in ("pretrain", "vqa", "nlvr"))

    def everything() -> list[Any]:
        lengths = {"max_length": 10, "min_length": 4}
        rows = [
            model.caption(PIXELS, **lengths).rows,
            model.caption(PIXELS, top_p=0.9, num_captions=2, forbidden=["the"], **lengths).rows,
            vqa.answer(PIXELS, "the dog").rows,
            vqa.answer(PIXELS, "the dog", ["a ball", "a dog", "the"]).rows,
        ]
        both = model.retrieve(PIXELS, ["the dog", "a ball"])
        tensors = [
            model.match(PIXELS, ["the dog", "a ball"]),
            model.similarity(PIXELS, "the dog"),
            model.embed_images(model.see(PIXELS)),
            both.images.scores,
            both.texts.scores,
            pairs.compare(PIXELS, PIXELS[::-1], "the dog"),
        ]
        assert all(tensor.dtype == torch.float32 for tensor in tensors)
        return [*rows, *(tensor.tolist() for tensor in tensors)]

    expected = everything()
    with surroundings():
        assert everything() == expected


def blip(kind: Any, dtype: str) -> Blip:
    med = random_med(kind)
    med = quantize_int8(med) if dtype == "int8" else med.to(getattr(torch, dtype))
    return Blip(med, Tokenizer(tiny_vocabulary()), "random", "", True, ImageOptions(size=32))


def test_a_model_is_loaded_as_ever() -> None:
    expected = blip_fast.load("scenes", dtype="float32").embed_images(PIXELS)
    with default_dtype(torch.float64):
        model = blip_fast.load("scenes", dtype="float32")
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.embed_images(PIXELS), expected, atol=0, rtol=0)
