"""The exported model: whole, the same, in place of the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import tiny_objective

from blip_fast.med.weights import read_checkpoint
from blip_fast.train import export as module
from blip_fast.train.export import export


@pytest.mark.parametrize("task", ["caption", "pretrain"])
def test_model_comes_back(tmp_path: Path, task: str) -> None:
    objective, folder = tiny_objective(task), tmp_path / "model"
    export(objective.model, objective.tokenizer, folder)
    with torch.no_grad():
        objective.model.vision.cls_token.add_(1)
    export(objective.model, objective.tokenizer, folder)
    read = read_checkpoint(folder)
    assert read.config == objective.model.config
    assert read.state.keys() == {name for name, _ in objective.model.named_parameters()}
    for name, parameter in objective.model.named_parameters():
        assert torch.equal(read.state[name], parameter), name
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failure_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, folder = tiny_objective(), tmp_path / "model"
    export(objective.model, objective.tokenizer, folder)
    written = (folder / "model.safetensors").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(module, "write_checkpoint", full_disk)
        export(objective.model, objective.tokenizer, folder)
    assert (folder / "model.safetensors").read_bytes() == written
    read_checkpoint(folder)
