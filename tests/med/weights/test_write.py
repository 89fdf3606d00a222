"""Writing: whole or not at all, in layouts that can hold the model and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import random_med, tiny_config, tiny_vocabulary
from salesforce import assert_identical, random_salesforce

from blip_fast.config import KINDS, Kind
from blip_fast.med.weights import WeightsError, read_checkpoint, write, write_checkpoint
from blip_fast.text import Tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_salesforce_file_has_every_name(tmp_path: Path, kind: Kind) -> None:
    model = random_med(kind)
    path = write_checkpoint(model, Tokenizer(tiny_vocabulary()), tmp_path, "salesforce")
    assert path == tmp_path / "model.pth"
    stored = torch.load(path, weights_only=True)["model"]
    names = {n for n in random_salesforce(kind) if not n.endswith("position_ids")}
    assert set(stored) == names
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == model.config
    assert checkpoint.tokenizer is not None
    state = {name: p.detach() for name, p in model.named_parameters()}
    assert_identical(checkpoint.state, state)


def test_tied_tensors_take_no_more_room_in_a_salesforce_file(tmp_path: Path) -> None:
    model = random_med("pretrain")
    path = write_checkpoint(model, None, tmp_path, "salesforce")
    weights = sum(p.nbytes for p in model.parameters())
    assert path.stat().st_size < 1.2 * weights


@pytest.mark.parametrize("kind", ["pretrain", "nlvr"])
def test_kinds_that_transformers_has_no_class_for(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(WeightsError, match=f"{kind} model.*blip_fast and salesforce"):
        write_checkpoint(random_med(kind), None, tmp_path / "x", "transformers")
    assert not (tmp_path / "x").exists()


def test_models_that_a_layout_would_change(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"vision width 192.*text width 128"):
        write_checkpoint(random_med("vqa"), None, tmp_path, "transformers")
    config = tiny_config("caption")
    wide = replace(config, text=replace(config.text, heads=1))
    with pytest.raises(WeightsError, match=r"heads 1 \(would be read as 2\)"):
        write_checkpoint(random_med("caption", config=wide), None, tmp_path, "salesforce")
    swapped = replace(config, text=replace(config.text, dec_id=127, enc_id=126))
    for layout in ("transformers", "salesforce"):
        with pytest.raises(WeightsError, match=r"ENC|enc_id"):
            write_checkpoint(random_med("caption", config=swapped), None, tmp_path, layout)
    with pytest.raises(WeightsError, match=r"\[DEC\] is token 125"):
        tokenizer = Tokenizer(tiny_vocabulary()[:-1])
        write_checkpoint(random_med("caption"), tokenizer, tmp_path, "blip_fast")
    with pytest.raises(WeightsError, match="layout is 'onnx'"):
        write_checkpoint(random_med("caption"), None, tmp_path, "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = random_med("caption", seed=1)
    write_checkpoint(old, Tokenizer(tiny_vocabulary()), tmp_path, "blip_fast")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(write, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(random_med("caption", seed=2), None, tmp_path, "blip_fast")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwriting_replaces_all(tmp_path: Path) -> None:
    write_checkpoint(random_med("caption", seed=1), None, tmp_path, "blip_fast")
    read = read_checkpoint(tmp_path)  # maps the file that is about to be replaced
    kept = {name: t.clone() for name, t in read.state.items()}
    model = random_med("retrieval", seed=2)
    write_checkpoint(model, None, tmp_path, "blip_fast")
    assert_identical(read.state, kept)
    assert read_checkpoint(tmp_path).config.kind == "retrieval"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
