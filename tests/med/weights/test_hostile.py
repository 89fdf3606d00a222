"""Files that are broken or mean harm: one sentence each, and nothing of them runs."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from salesforce import random_salesforce

from blip_fast.med.weights import WeightsError, read_checkpoint


class Harmful:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"mkdir {self.path}",)


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        read_checkpoint(path)
    assert error.value.__cause__ is None and error.value.__suppress_context__
    assert str(path) in str(error.value)
    assert "weights_only" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("form", ["pickle", "legacy", "zip"])
def test_nothing_is_run(tmp_path: Path, form: str) -> None:
    done, path = tmp_path / "done", tmp_path / "model.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Harmful(done), protocol=2))
    else:
        state = {"model": random_salesforce("caption"), "config": Harmful(done)}
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    refused(path, "system, which is not a tensor; nothing of it was run")
    assert not done.exists()


def test_objects_of_other_classes(tmp_path: Path) -> None:
    torch.save({"model": random_salesforce("caption"), "args": Namespace(lr=1)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "argparse.Namespace.*torch.save")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_in_newer_words_is_not_run_either(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "done"), protocol=5))
    refused(tmp_path / "model.pth", "not written by torch.save")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_files_that_are_no_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    for content, message in (
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"<html><body>sign in</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer"),
        (b"just some text, long enough to be read", "truncated|not a whole"),
        (bytes(range(256)) * 8, "truncated|not a whole"),
        (b"\x80\x02}q\x00", "truncated|not a whole"),
    ):
        path.write_bytes(content)
        refused(path, message)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, form: str, share: float) -> None:
    state = {n: t.clone() for n, t in random_salesforce("caption").items()}
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=form == "zip")
    read_checkpoint(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "is truncated|is not a whole safetensors file")


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(3), {"model": {"a": 1}}, {"a": {"b": torch.ones(1)}}, {}]
)
def test_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "state dict")


def test_hostile_sizes(tmp_path: Path) -> None:
    state = random_salesforce("caption")
    state["text_decoder.bert.encoder.layer.999999999.output.dense.bias"] = torch.zeros(1)
    state["visual_encoder.blocks.777777777.norm1.bias"] = torch.zeros(1)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="999999999"):
        read_checkpoint(tmp_path / "model.pth")
    for name, shape in (
        ("visual_encoder.pos_embed", (1, 12, 192)),
        ("visual_encoder.cls_token", (192,)),
        ("visual_encoder.cls_token", (1, 1, 100)),
        ("text_decoder.bert.embeddings.word_embeddings.weight", (0, 128)),
    ):
        state = random_salesforce("caption")
        state[name] = torch.zeros(shape)
        torch.save(state, tmp_path / "model.pth")
        refused(tmp_path / "model.pth", "square grid|axes are expected|multiple of 64")
