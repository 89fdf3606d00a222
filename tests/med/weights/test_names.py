"""The table of names, in both directions, and what is said where a state does not fit it."""

from __future__ import annotations

import pytest
import torch
from factories import hf_tiny, random_med, tiny_config
from salesforce import (
    HF,
    assert_identical,
    momentum_and_queues,
    random_salesforce,
)

from blip_fast.config import KINDS, Kind
from blip_fast.med.weights import (
    WeightsError,
    ours_to_salesforce,
    ours_to_transformers,
    salesforce_to_ours,
    transformers_to_ours,
)
from blip_fast.med.weights.table import is_training_only, parameter_shapes


@pytest.mark.parametrize("kind", KINDS)
def test_salesforce_round_trip_is_bit_equal(kind: Kind) -> None:
    theirs = random_salesforce(kind)
    ours = salesforce_to_ours({**theirs, **momentum_and_queues(theirs)}, tiny_config(kind))
    assert {n: tuple(t.shape) for n, t in ours.items()} == parameter_shapes(tiny_config(kind))
    kept = {name: t for name, t in theirs.items() if not name.endswith("position_ids")}
    assert_identical(ours_to_salesforce(ours, tiny_config(kind)), kept)


@pytest.mark.parametrize("kind", HF)
def test_transformers_round_trip_is_bit_equal(kind: Kind) -> None:
    theirs = hf_tiny(HF[kind]).state_dict()
    config = tiny_config(kind, vision_width=128)
    ours = transformers_to_ours(theirs, config)
    assert {n: tuple(t.shape) for n, t in ours.items()} == parameter_shapes(config)
    tied = {n for n in theirs if n.startswith("text_decoder.cls.predictions.decoder.")}
    once = {name: t for name, t in theirs.items() if name not in tied}
    assert_identical(ours_to_transformers(ours, config), once)


@pytest.mark.parametrize("kind", KINDS)
def test_our_round_trip_is_bit_equal(kind: Kind) -> None:
    state = {name: p.detach() for name, p in random_med(kind).named_parameters()}
    there = ours_to_salesforce(state, tiny_config(kind))
    assert_identical(salesforce_to_ours(there, tiny_config(kind)), state)


def test_fused_rows_are_in_order() -> None:
    theirs = random_salesforce("pretrain")
    ours = salesforce_to_ours(theirs, tiny_config("pretrain"))
    layer = "text_decoder.bert.encoder.layer.1.attention.self"
    rows = ours["text_decoder.layers.1.self_attention.qkv.weight"].split(128)
    for row, name in zip(rows, ("query", "key", "value"), strict=True):
        assert torch.equal(row, theirs[f"{layer}.{name}.weight"])
    rows = ours["text_encoder.layers.0.cross_attention.key_value.bias"].split(128)
    for row, name in zip(rows, ("key", "value"), strict=True):
        assert torch.equal(
            row, theirs[f"text_encoder.encoder.layer.0.crossattention.self.{name}.bias"]
        )


def test_a_tied_tensor_may_be_stored_under_any_one_of_its_names() -> None:
    theirs = random_salesforce("pretrain")
    expected = salesforce_to_ours(theirs, tiny_config("pretrain"))
    del theirs["text_encoder.embeddings.word_embeddings.weight"]
    del theirs["text_decoder.bert.embeddings.word_embeddings.weight"]
    del theirs["text_decoder.cls.predictions.bias"]
    del theirs["text_encoder.encoder.layer.1.crossattention.self.key.weight"]
    assert_identical(salesforce_to_ours(theirs, tiny_config("pretrain")), expected)


@pytest.mark.parametrize(
    "name",
    [
        "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight",
        "text_decoder.bert.embeddings.LayerNorm.bias",
        "text_decoder.cls.predictions.decoder.weight",
        "text_decoder.cls.predictions.decoder.bias",
    ],
)
def test_tied_tensors_that_differ_in_one_bit_are_refused(name: str) -> None:
    theirs = random_salesforce("pretrain")
    changed = theirs[name].clone()
    changed.view(-1)[5] = changed.view(-1)[5].nextafter(torch.tensor(9.0))
    theirs[name] = changed
    with pytest.raises(WeightsError, match="tied, and yet different") as error:
        salesforce_to_ours(theirs, tiny_config("pretrain"))
    assert name in str(error.value)
    assert f" and {name}" in str(error.value)


def test_self_attention_of_encoder_and_decoder_is_not_tied() -> None:
    ours = salesforce_to_ours(random_salesforce("pretrain"), tiny_config("pretrain"))
    name = "layers.0.self_attention.qkv.weight"
    assert not torch.equal(ours[f"text_encoder.{name}"], ours[f"text_decoder.{name}"])


def test_missing_unexpected_and_misshapen_are_all_listed_with_both_shapes() -> None:
    theirs = random_salesforce("caption")
    del theirs["visual_encoder.blocks.1.attn.qkv.bias"]
    del theirs["text_decoder.cls.predictions.transform.dense.weight"]
    theirs["stranger.weight"] = torch.zeros(3, 4)
    theirs["visual_encoder.norm.weight"] = torch.ones(64)
    theirs["text_decoder.bert.encoder.layer.0.attention.self.key.bias"] = torch.zeros(127)
    with pytest.raises(WeightsError) as error:
        salesforce_to_ours(theirs, tiny_config("caption"))
    text = str(error.value)
    assert "2 missing" in text
    assert "visual_encoder.blocks.1.attn.qkv.bias [576]" in text
    assert "text_decoder.cls.predictions.transform.dense.weight [128, 128]" in text
    assert "1 unexpected" in text and "stranger.weight [3, 4]" in text
    assert "2 of another shape" in text
    assert "visual_encoder.norm.weight is [64], the model needs [192]" in text
    assert "self.key.bias is [127], the model needs [128]" in text


def test_long_lists_are_cut_and_counted() -> None:
    theirs = random_salesforce("caption")
    theirs |= {f"stranger.{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(WeightsError, match="50 unexpected") as error:
        salesforce_to_ours(theirs, tiny_config("caption"))
    assert "and 30 more" in str(error.value)
    assert str(error.value).count("stranger.") == 20


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    theirs = random_salesforce("retrieval")
    theirs["itm_head.bias"][1] = value
    with pytest.raises(WeightsError, match=r"with NaN or infinity:\n    itm_head.bias$"):
        salesforce_to_ours(theirs, tiny_config("retrieval"))


def test_large_finite_half_precision_values_pass() -> None:
    theirs = {
        name: t.half() if t.is_floating_point() else t
        for name, t in random_salesforce("retrieval").items()
    }
    theirs["visual_encoder.norm.weight"].fill_(60000)  # their sum is no half
    theirs["itm_head.weight"] = torch.full((2, 128), 3e38)  # their sum is no float
    ours = salesforce_to_ours(theirs, tiny_config("retrieval"))
    assert ours["vision.norm.weight"].dtype == torch.float16


def test_integers_are_no_weights() -> None:
    theirs = random_salesforce("retrieval")
    theirs["itm_head.weight"] = torch.zeros(2, 128, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"itm_head.weight is torch.int8"):
        salesforce_to_ours(theirs, tiny_config("retrieval"))


def test_only_training_only_tensors_are_left_aside() -> None:
    theirs = random_salesforce("pretrain")
    assert all(is_training_only(name) for name in momentum_and_queues(theirs))
    aside = {name for name in theirs if is_training_only(name)}
    assert aside == {
        "text_encoder.embeddings.position_ids",
        "text_decoder.bert.embeddings.position_ids",
    }
