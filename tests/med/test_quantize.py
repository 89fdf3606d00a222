"""int8 models: close to what they were, shared where they were shared, and never saved as such."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from factories import random_med
from torch.nn import functional as F

import blip_fast
from blip_fast.config import BlipConfig
from blip_fast.med.blip import MED, initialise
from blip_fast.med.layers import Linear
from blip_fast.med.quantize import Int8Linear, is_quantized, quantize_int8
from blip_fast.med.weights import WeightsError, write_checkpoint
from blip_fast.text import pack


@pytest.fixture(scope="module")
def base() -> tuple[MED, MED]:
    """A base-size retrieval model with random weights in fp32, and the same in int8."""
    with torch.device("meta"):  # or torch would fill 220 million weights that are filled again
        model = MED(BlipConfig(kind="retrieval"))
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    initialise(model, seed=3)
    return model, quantize_int8(copy.deepcopy(model))


def test_features_of_a_base_model_are_within_half_a_per_cent(base: tuple[MED, MED]) -> None:
    model, quantized = base
    images = torch.randn(2, 3, 224, 224)
    texts = pack([[101, *range(2000, 2012)], [101, 7, 102]])
    with torch.inference_mode():
        for name, feature in (
            ("image", lambda m: m.image_feature(m.vision(images))),
            ("text", lambda m: m.text_feature(texts)),
        ):
            cosine = F.cosine_similarity(feature(model), feature(quantized), dim=-1)
            assert (cosine > 0.995).all(), f"{name}: {cosine}"
            assert not torch.equal(feature(model), feature(quantized)), f"{name}: nothing changed"


def test_match_probabilities_of_a_base_model_stay(base: tuple[MED, MED]) -> None:
    model, quantized = base
    images = torch.randn(1, 3, 224, 224)
    texts = pack([[30523, *range(3000, 3009)]] * 2)
    with torch.inference_mode():
        a, b = (
            m.match_logits(texts, m.see(images), torch.zeros(2, dtype=torch.int64)).softmax(-1)
            for m in base
        )
    assert (a - b).abs().max() < 0.01


@pytest.mark.parametrize("kind", ["pretrain", "caption", "vqa", "nlvr"])
def test_blocks_alone_are_replaced_and_stay_shared(kind: str) -> None:
    model = quantize_int8(random_med(kind))
    left = {n for n, m in model.named_modules() if isinstance(m, Linear)}
    assert not {n for n in left if ".layers." in n or ".blocks." in n}, left
    assert "vision.patch_embed" in left
    assert is_quantized(model)
    assert not is_quantized(random_med(kind))
    if kind == "pretrain":
        encoder, decoder = model.text_encoder.layers[0], model.text_decoder.layers[0]
        assert encoder.mlp.fc1 is decoder.mlp.fc1
        assert isinstance(encoder.mlp.fc1, Int8Linear)
        assert encoder.self_attention.qkv is not decoder.self_attention.qkv


def test_captions_of_the_packaged_model_barely_change() -> None:
    """Beams may part where two words are as likely; the memory they read may not."""
    plain = blip_fast.load("scenes", dtype="float32", device="cpu")
    int8 = blip_fast.load("scenes", dtype="float32", device="cpu", quantize="int8")
    size = plain.image_size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    a, b = plain.see(images), int8.see(images)
    error = (a.pairs - b.pairs).square().mean() / a.pairs.square().mean()
    assert 0 < error.sqrt() < 0.05
    for (first,), (second,) in zip(plain.caption(a), int8.caption(a), strict=True):
        assert first.text and second.text


def test_what_cannot_be_quantized_or_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantize is 'int4'"):
        blip_fast.load("scenes", device="cpu", quantize="int4")
    with pytest.raises(ValueError, match="float32 or bfloat16 on a CPU"):
        quantize_int8(random_med("caption").half())
    with pytest.raises(WeightsError, match="weights are int8"):
        write_checkpoint(quantize_int8(random_med("caption")), None, tmp_path, "blip_fast")
