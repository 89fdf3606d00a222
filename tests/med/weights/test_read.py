"""Everything that a user may name as a checkpoint, and what is said where it is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from factories import hf_tiny, random_med, tiny_config, tiny_vocabulary
from safetensors.torch import load_file, save_file
from salesforce import (
    HF,
    assert_identical,
    momentum_and_queues,
    random_salesforce,
)

from blip_fast.config import KINDS, Kind, preset
from blip_fast.med.weights import (
    WeightsError,
    build,
    read_checkpoint,
    salesforce_to_ours,
    write_checkpoint,
)
from blip_fast.med.weights.files import sha256_of
from blip_fast.text import Tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_vocabulary())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapped", [True, False])
def test_salesforce_file(tmp_path: Path, kind: Kind, wrapped: bool) -> None:
    state = random_salesforce(kind)
    extra = momentum_and_queues(state) if kind in ("pretrain", "retrieval") else {}
    path = tmp_path / "model.pth"
    found = {**state, **extra}
    torch.save({"model": found, "epoch": 3, "config": {"lr": 0.1}} if wrapped else found, path)
    checkpoint = read_checkpoint(path)
    config = tiny_config(kind)
    assert checkpoint.config == config
    assert_identical(checkpoint.state, salesforce_to_ours(state, config))
    assert checkpoint.layout == "salesforce" and checkpoint.trained
    assert checkpoint.tokenizer is None
    assert checkpoint.source == str(path)
    assert checkpoint.sha256 == sha256_of([path])
    assert set(extra) <= set(checkpoint.left_aside)
    assert all("position_ids" in n for n in set(checkpoint.left_aside) - set(extra))


def test_salesforce_safetensors_and_legacy_pickle(tmp_path: Path) -> None:
    state = random_salesforce("caption")
    new, old = tmp_path / "model.safetensors", tmp_path / "model.pt"
    save_file({name: t.clone() for name, t in state.items()}, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    assert_identical(read_checkpoint(new).state, read_checkpoint(old).state)


def test_special_ids_come_from_the_vocabulary(tmp_path: Path) -> None:
    scenes = preset("scenes", "caption")
    torch.save(random_salesforce("caption", config=scenes), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="is not a vocabulary"):
        read_checkpoint(tmp_path / "model.pth", vocabulary=tmp_path / "none.txt")
    assert read_checkpoint(tmp_path / "model.pth").config.text.cls_id == 101  # BERT's
    tokenizer = read_checkpoint("scenes").tokenizer
    assert tokenizer is not None
    tokenizer.write(tmp_path / "words.txt")
    found = read_checkpoint(tmp_path / "model.pth", vocabulary=tmp_path / "words.txt")
    assert found.config == scenes
    assert found.tokenizer is not None and len(found.tokenizer) == 512


def test_a_small_vocabulary_must_be_given(tmp_path: Path) -> None:
    config = tiny_config("caption")
    small = replace(config, text=replace(config.text, vocab_size=90, dec_id=88, enc_id=89))
    torch.save(random_salesforce("caption", config=small), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="vocabulary of 90 tokens"):
        read_checkpoint(tmp_path / "model.pth")


def test_anothers_vocabulary_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    torch.save(random_salesforce("caption"), tmp_path / "model.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocabulary()[:-1]) + "\n")
    with pytest.raises(WeightsError, match=r"\[DEC\] is token 125"):
        read_checkpoint(tmp_path / "model.pth")
    tokenizer.write(tmp_path / "vocab.txt")
    found = read_checkpoint(tmp_path / "model.pth").tokenizer
    assert found is not None and found.vocabulary == tiny_vocabulary()


@pytest.mark.parametrize("kind", HF)
@pytest.mark.parametrize("shards", [False, True])
def test_transformers_folder(tmp_path: Path, kind: Kind, shards: bool) -> None:
    model = hf_tiny(HF[kind], seed=1)
    model.save_pretrained(tmp_path, max_shard_size="300KB" if shards else "5GB")
    assert (tmp_path / "model.safetensors.index.json").is_file() == shards
    checkpoint = read_checkpoint(tmp_path)
    expected = tiny_config(kind, vision_width=128)
    vision = replace(expected.vision, layer_norm_eps=1e-5)
    assert checkpoint.config == replace(expected, vision=vision, embed_width=32)
    assert checkpoint.layout == "transformers"
    assert torch.equal(
        checkpoint.state["vision.cls_token"],
        model.vision_model.embeddings.class_embedding.view(-1),
    )
    if kind == "retrieval":
        assert checkpoint.state["temperature.value"].item() == pytest.approx(0.07)


def test_transformers_pickle_and_class_defaults(tmp_path: Path) -> None:
    model = hf_tiny("BlipForConditionalGeneration", num_attention_heads=8)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("num_attention_heads", "layer_norm_eps", "sep_token_id", "pad_token_id"):
        del config["text_config"][key]
    del config["vision_config"]["layer_norm_eps"], config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = read_checkpoint(tmp_path)
    # Pickles on the hub hold all names and a buffer that newer models do not have.
    state = model.state_dict()
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    checkpoint = read_checkpoint(tmp_path)
    assert_identical(checkpoint.state, expected.state)
    assert checkpoint.config == expected.config
    assert checkpoint.config.text.heads == 8
    assert checkpoint.config.text.sep_id == 102
    assert checkpoint.config.text.layer_norm_eps == 1e-12
    assert checkpoint.config.vision.layer_norm_eps == 1e-5
    assert checkpoint.left_aside == ["text_decoder.bert.embeddings.position_ids"]


def test_tokenizer_json_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import BertTokenizer

    hf_tiny("BlipForConditionalGeneration").save_pretrained(tmp_path)
    tokenizer.write(tmp_path / "vocab.txt")
    theirs = BertTokenizer.from_pretrained(tmp_path)
    theirs.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    (tmp_path / "vocab.txt").unlink()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    found = read_checkpoint(tmp_path).tokenizer
    assert found is not None and found.vocabulary == tiny_vocabulary()
    assert (found.id_of("[DEC]"), found.id_of("[ENC]")) == (126, 127)


def edited(folder: Path, section: str, **values: object) -> Path:
    hf_tiny("BlipForConditionalGeneration").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config[section].update(values)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_transformers_configs_that_are_not_computed(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="hidden_act is 'relu'"):
        read_checkpoint(edited(tmp_path, "text_config", hidden_act="relu"))
    with pytest.raises(WeightsError, match="square"):
        read_checkpoint(edited(tmp_path, "vision_config", image_size=[32, 48]))
    with pytest.raises(WeightsError, match=r"pos.* is \[1, 17, 128\].*needs \[1, 37, 128\]"):
        read_checkpoint(edited(tmp_path, "vision_config", image_size=48))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(WeightsError, match="'clip'"):
        read_checkpoint(tmp_path)


def test_blip_model_is_refused(tmp_path: Path) -> None:
    hf_tiny("BlipModel").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"BlipModel.*match no BLIP checkpoint"):
        read_checkpoint(tmp_path)


def test_a_vqa_decoder_of_vision_width_is_refused_by_shape(tmp_path: Path) -> None:
    state = random_salesforce("vqa")  # vision 192 wide, text 128
    name = "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight"
    state[name] = torch.randn(128, 192)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(
        WeightsError, match=rf"{name} is \[128, 192\], the model needs \[128, 128\]"
    ):
        read_checkpoint(tmp_path / "model.pth")


def test_parts_of_a_pretrained_checkpoint(tmp_path: Path) -> None:
    state = random_salesforce("pretrain")
    torch.save({"model": {**state, **momentum_and_queues(state)}}, tmp_path / "model.pth")
    whole = read_checkpoint(tmp_path / "model.pth")
    for kind in ("caption", "retrieval"):
        part = read_checkpoint(tmp_path / "model.pth", kind=kind)
        config = replace(tiny_config("pretrain"), kind=kind)
        in_caption = ("visual_encoder.", "text_decoder.")
        its = {
            name: tensor
            for name, tensor in state.items()
            if (
                name.startswith(in_caption)
                if kind == "caption"
                else not name.startswith("text_decoder.")
            )
        }
        assert part.config == config
        assert_identical(part.state, salesforce_to_ours(its, config))
        assert set(whole.left_aside) < set(part.left_aside)
        build(part, dtype=torch.float32, device="cpu").see(torch.randn(1, 3, 32, 32))
    assert "itm_head.weight" in read_checkpoint(tmp_path / "model.pth", kind="caption").left_aside
    with pytest.raises(WeightsError, match=r"pretrain checkpoint.*not vqa"):
        read_checkpoint(tmp_path / "model.pth", kind="vqa")
    torch.save(random_salesforce("caption"), tmp_path / "caption.pth")
    with pytest.raises(WeightsError, match=r"caption checkpoint.*not retrieval"):
        read_checkpoint(tmp_path / "caption.pth", kind="retrieval")
    with pytest.raises(WeightsError, match="kind is 'captions'"):
        read_checkpoint(tmp_path / "caption.pth", kind="captions")


@pytest.mark.parametrize("kind", KINDS)
def test_our_folder_and_lone_file(tmp_path: Path, kind: Kind, tokenizer: Tokenizer) -> None:
    model = random_med(kind, seed=2)
    assert write_checkpoint(model, tokenizer, tmp_path, "blip_fast") == tmp_path
    state = {name: p.detach() for name, p in model.named_parameters()}
    for source in (tmp_path, tmp_path / "model.safetensors"):
        checkpoint = read_checkpoint(source)
        assert_identical(checkpoint.state, state)
        assert checkpoint.config == model.config and checkpoint.layout == "blip_fast"
        assert checkpoint.tokenizer is not None


def test_our_weights_need_their_config(tmp_path: Path) -> None:
    write_checkpoint(random_med("caption"), None, tmp_path, "blip_fast")
    config = json.loads((tmp_path / "config.json").read_text())
    for broken, message in (
        ({**config, "version": 2}, "version 2"),
        ({**config, "wings": 2}, "wings"),
        ({**config, "kind": "poem"}, "poem"),
        ({}, "format None"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not readable JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config.json"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match=r"no config.json"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    model = hf_tiny("BlipForConditionalGeneration")
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(WeightsError, match=first.name):
        read_checkpoint(tmp_path)


def test_scenes() -> None:
    first, second = read_checkpoint("scenes"), read_checkpoint("scenes")
    assert first.config == preset("scenes", "pretrain")
    assert first.tokenizer is not None
    assert len(first.tokenizer.vocabulary) == len(set(first.tokenizer.vocabulary)) == 510
    assert first.sha256 == second.sha256
    assert first.trained == (first.state["vision.norm.weight"] != 1).any().item()
    model = build(first, dtype=torch.float32, device="cpu")
    assert model.see(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).pairs.isfinite().all()


def test_build_shares_or_casts() -> None:
    checkpoint = read_checkpoint("scenes")
    name = "text_encoder.embeddings.word.weight"
    written = checkpoint.state[name].dtype
    model = build(checkpoint, dtype=written, device="cpu")
    assert not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    parameters = dict(model.named_parameters())
    assert list(parameters) == list(checkpoint.state)
    assert parameters[name].data_ptr() == checkpoint.state[name].data_ptr()
    assert model.text_decoder.embeddings.word.weight is parameters[name]
    other = torch.float32 if written == torch.bfloat16 else torch.bfloat16
    assert {p.dtype for p in build(checkpoint, dtype=other, device="cpu").parameters()} == {other}


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "Salesforce/tiny"
        asked.append(allow_patterns)
        if "pytorch_model.bin" in allow_patterns:
            state = load_file(tmp_path / "hidden")
            torch.save(state, tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hf_tiny("BlipForConditionalGeneration").save_pretrained(tmp_path)
    with_safetensors = read_checkpoint("Salesforce/tiny")
    assert len(asked) == 1 and with_safetensors.source == "Salesforce/tiny"
    (tmp_path / "model.safetensors").rename(tmp_path / "hidden")
    assert_identical(read_checkpoint("Salesforce/tiny").state, with_safetensors.state)
    assert len(asked) == 3


def test_nothing_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no network\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WeightsError, match=r"from the hub: no network\..*'scenes'") as error:
        read_checkpoint("Salesforce/none")
    assert error.value.__suppress_context__ and "long story" not in str(error.value)
    for name in ("nothing", "a/b/c", "folder/model.pth", str(tmp_path / "none")):
        with pytest.raises(WeightsError, match=r"there is no file or folder.*'scenes'"):
            read_checkpoint(name)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(WeightsError, match=r"ends in '.txt'"):
        read_checkpoint(tmp_path / "notes.txt")
    torch.save({}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth: name the file itself"):
        read_checkpoint(tmp_path)


def test_parts_that_make_no_kind(tmp_path: Path) -> None:
    state = random_salesforce("retrieval")
    headless = {n: t for n, t in state.items() if not n.startswith("itm_head")}
    torch.save(headless, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"\['text_encoder.\*'\]; no kind"):
        read_checkpoint(tmp_path / "model.pth")
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="not the weights of a BLIP") as error:
        read_checkpoint(tmp_path / "model.pth")
    assert "layer.weight" in str(error.value)
    del state["visual_encoder.pos_embed"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"visual_encoder.pos_embed is missing"):
        read_checkpoint(tmp_path / "model.pth")
