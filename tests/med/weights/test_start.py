"""Models to train from foreign weights, whose outputs they repeat, and from other kinds of BLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import VOCAB_SIZE, random_med, randomise, tiny_config, tiny_vocabulary
from safetensors.torch import load_file
from salesforce import random_salesforce
from torch import Tensor

from blip_fast.config import IMAGE_MEAN, IMAGE_STD, KINDS, Kind
from blip_fast.med.context import PackedPast
from blip_fast.med.weights import WeightsError, write_checkpoint
from blip_fast.med.weights.start import start
from blip_fast.text import Tokenizer, pack

CONFIG = tiny_config("pretrain", vision_width=128)


def build(kind: Kind = "pretrain", **settings: Any) -> Any:
    return start(kind, config=CONFIG, image_size=32, **settings)


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "vocab.txt"
    Tokenizer(tiny_vocabulary()).write(path)
    return str(path)


def assert_same(found: Tensor, expected: Tensor) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert expected.std() > 1e-2 and error < 1e-5, f"relative error {error:.1e}"


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    return (images / 255 - mean) / std


def vit_settings(size: int = 32) -> dict[str, Any]:
    return {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "image_size": size,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
    }


def save(model: Any, folder: Path) -> str:
    randomise(model.named_parameters(), 1)
    model.eval().save_pretrained(folder)
    return str(folder)


IMAGES = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
def test_a_vit_of_transformers_gives_the_same_tokens(
    name: str, tmp_path: Path, vocabulary: str
) -> None:
    import transformers

    theirs = getattr(transformers, name)(transformers.ViTConfig(**vit_settings()))
    folder = save(theirs, tmp_path / "vit")
    model, _, notes = build(vision_init=folder, vocabulary=vocabulary)
    encoder = getattr(theirs, "vit", theirs)
    with torch.no_grad():
        expected = encoder(normalised(IMAGES)).last_hidden_state
        assert_same(model.vision(IMAGES), expected)
    assert any(
        "left aside" in note and ("pooler" in note or "classifier" in note) for note in notes
    )
    assert any(note.startswith("new") and "text_encoder" in note for note in notes)


def test_a_deit_loses_its_distillation_token_and_nothing_else(
    tmp_path: Path, vocabulary: str
) -> None:
    import transformers

    config = transformers.DeiTConfig(**vit_settings())
    theirs = transformers.DeiTForImageClassificationWithTeacher(config)
    folder = save(theirs, tmp_path / "deit")
    vision = build(vision_init=folder, vocabulary=vocabulary)[0].vision
    saved = load_file(Path(folder) / "model.safetensors")
    positions = saved["deit.embeddings.position_embeddings"][0]
    assert torch.equal(vision.position, torch.cat([positions[:1], positions[2:]]))
    key = saved["deit.encoder.layer.1.attention.attention.key.weight"]
    assert torch.equal(vision.blocks[1].qkv.weight[128:256], key)


def test_positions_are_interpolated_to_the_image_size(tmp_path: Path, vocabulary: str) -> None:
    import transformers

    theirs = transformers.ViTModel(transformers.ViTConfig(**vit_settings(size=64)))
    folder = save(theirs, tmp_path / "vit")
    model, _, _ = build(vision_init=folder, vocabulary=vocabulary)
    assert model.vision.position.shape == (17, 128)
    assert torch.equal(model.vision.position[0], theirs.embeddings.position_embeddings[0, 0])


def test_timm_names_are_those_of_salesforce_without_their_prefix(
    tmp_path: Path, vocabulary: str
) -> None:
    state = random_salesforce("pretrain", config=CONFIG)
    prefix = "visual_encoder."
    timm = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    timm |= {"head.weight": torch.zeros(10, 128), "head.bias": torch.zeros(10)}
    torch.save({"model": timm}, tmp_path / "deit.pth")
    model, _, notes = build(vision_init=str(tmp_path / "deit.pth"), vocabulary=vocabulary)
    assert torch.equal(model.vision.blocks[1].qkv.weight, timm["blocks.1.attn.qkv.weight"])
    assert torch.equal(model.vision.patch_embed.weight, timm["patch_embed.proj.weight"].flatten(1))
    assert any("head" in note for note in notes)


@pytest.mark.parametrize("name", ["BertModel", "BertForPreTraining", "BertForMaskedLM"])
def test_a_bert_gives_the_same_states(name: str, tmp_path: Path, vocabulary: str) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE - 2,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    theirs = getattr(transformers, name)(config)
    folder = save(theirs, tmp_path / "bert")
    encoder = getattr(theirs, "bert", theirs)
    with torch.no_grad():
        encoder.embeddings.token_type_embeddings.weight.zero_()  # BLIP leaves them out
    model, tokenizer, notes = build(text_init=folder, vocabulary=vocabulary)
    ids = [101, 5, 17, 60, 102]
    text = pack([ids])
    with torch.no_grad():
        found = model.text_encoder(text.ids, text.positions, PackedPast(text, causal=False))
        assert_same(found, encoder(torch.tensor([ids])).last_hidden_state[0])
    word = model.text_encoder.embeddings.word.weight
    assert len(tokenizer) == len(word) == VOCAB_SIZE
    assert word[-2:].abs().max() < 0.2  # [DEC] and [ENC]: standard deviation 0.02
    decoder = model.text_decoder.layers[0].self_attention.qkv.weight
    assert torch.equal(decoder, model.text_encoder.layers[0].self_attention.qkv.weight)
    if name != "BertModel":
        bias = theirs.cls.predictions.bias
        assert torch.equal(model.lm_head.bias[:-2], bias) and not model.lm_head.bias[-2:].any()


def test_the_names_of_the_published_berts(tmp_path: Path, vocabulary: str) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE - 2,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    folder = save(transformers.BertForPreTraining(config), tmp_path / "new")
    state = load_file(tmp_path / "new" / "model.safetensors")
    (tmp_path / "old").mkdir()
    renamed = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for n, tensor in state.items()
    }
    assert set(renamed) != set(state)
    torch.save(renamed, tmp_path / "old" / "pytorch_model.bin")
    expected = dict(build(text_init=folder, vocabulary=vocabulary)[0].named_parameters())
    found = dict(
        build(text_init=str(tmp_path / "old"), vocabulary=vocabulary)[0].named_parameters()
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_every_kind_starts_from_every_kind(old: Kind, new: Kind, tmp_path: Path) -> None:
    source = random_med(old, config=replace(CONFIG, kind=old))
    write_checkpoint(source, Tokenizer(tiny_vocabulary()), tmp_path / "old", "blip_fast")
    model, _, notes = start(new, config=CONFIG, image_size=32, pretrained=str(tmp_path / "old"))
    assert model.config.kind == new
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model.vision(IMAGES), source.vision(IMAGES))
    theirs = dict(source.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        if name in theirs:
            assert torch.equal(parameter, theirs[name]), name
    listed = [note for note in notes if note.startswith("new")]
    assert bool(listed) == bool({n for n, _ in model.named_parameters()} - _covered(theirs))


def _covered(theirs: dict[str, Any]) -> set[str]:
    """Names for which a checkpoint has a value, under their own or an ancestor's name."""
    covered = set(theirs)
    for name in theirs:
        for a, b in (("text_encoder.", "text_decoder."), ("text_decoder.", "text_encoder.")):
            if name.startswith(a):
                covered.add(name.replace(a, b, 1))
    for name in list(covered):
        for part in ("query.", "key_value.", "proj."):
            if f"cross_attention.{part}" in name:
                covered |= {name.replace(part, f"{part}{side}.") for side in (0, 1)}
    return covered


def test_both_sides_of_nlvr_begin_as_the_one_cross_attention(tmp_path: Path) -> None:
    source = random_med("pretrain", config=CONFIG)
    write_checkpoint(source, Tokenizer(tiny_vocabulary()), tmp_path / "old", "blip_fast")
    model, _, _ = start("nlvr", config=CONFIG, image_size=32, pretrained=str(tmp_path / "old"))
    single = source.text_encoder.layers[0].cross_attention
    for side in range(2):
        twin = model.text_encoder.layers[0].cross_attention
        assert torch.equal(twin.key_value[side].weight, single.key_value.weight)
        assert torch.equal(twin.proj[side].bias, single.proj.bias)


def test_what_does_not_fit_is_refused_and_listed(tmp_path: Path, vocabulary: str) -> None:
    state = random_salesforce("pretrain", config=CONFIG)
    prefix = "visual_encoder."
    timm = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    path = tmp_path / "vit.pth"

    def fails(state: dict[str, Tensor], match: str) -> None:
        torch.save(state, path)
        with pytest.raises(WeightsError, match=match):
            build(vision_init=str(path), vocabulary=vocabulary)

    fails({n: t for n, t in timm.items() if n != "norm.bias"}, "norm.bias")
    fails(timm | {"blocks.2.norm1.weight": torch.ones(128)}, "blocks.2.norm1.weight")
    fails(timm | {"norm.bias": torch.ones(64)}, r"vision.norm.bias is \(64,\), not \(128,\)")
    fails({"x": torch.ones(1)}, "no patch embedding")
    with pytest.raises(ValueError, match="there is no vocabulary"):
        build()
    with pytest.raises(WeightsError, match="neither a folder"):
        build(text_init=str(tmp_path / "nothing"), vocabulary=vocabulary)
