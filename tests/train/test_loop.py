"""Whole runs of a few steps: killed, stopped, poisoned, resumed; on one process and on two."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from training import CPU, Examples, run_processes, tiny_objective, tiny_recipe
from training_jobs import Faults, run, run_and_tell

from blip_fast.med.weights import read_checkpoint
from blip_fast.train import loop
from blip_fast.train.checkpoint import MARK
from blip_fast.train.guard import alone
from blip_fast.train.loop import Summary, train
from blip_fast.train.vigil import NonFinite, Vigil

STEPS = 12  # two epochs of 13 samples in batches of 2
POISON = 9  # a sample's number: in step 5 of one process


def steps_of(output: Path) -> list[int]:
    """Of the complete checkpoints."""
    return sorted(int(path.parent.name[5:]) for path in output.glob(f"checkpoints/*/{MARK}"))


def state_of(output: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds."""
    newest = output / "checkpoints" / f"step-{steps_of(output)[-1]:08d}"
    dcp_to_torch_save(newest, output / "state.pt")
    return torch.load(output / "state.pt", weights_only=True)["run"]


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def learned(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what a clock or a processor says."""
    measured = ("images_per_second", "mfu", "peak_memory_bytes", "data_wait")
    return {name: value for name, value in record.items() if name not in measured}


def assert_same_run(mine: Path, other: Path) -> None:
    """Bit for bit: weights, moments, queues, the exported model, and the log."""
    states = state_of(mine), state_of(other)
    assert states[0].keys() == states[1].keys() and len(states[0]) > 100
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    weights = "model/model.safetensors"
    assert (mine / weights).read_bytes() == (other / weights).read_bytes()
    assert [learned(r) for r in log_of(mine)] == [learned(r) for r in log_of(other)]


def train_here(output: Path, faults: Faults | None = None, **changes: Any) -> Summary:
    recipe = tiny_recipe(**changes)
    objective = tiny_objective(recipe.task)
    examples = Examples(objective, recipe.batch_size, poison=POISON)
    if faults is not None:
        faults.arm(objective)
    return train(recipe, output, objective, examples, objective.tokenizer, CPU)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run that nothing happened to, on as many threads as those that are killed."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert run_processes(run, 1, output, "pretrain", {"log_steps": 3}) == [0]
    return output


def test_a_whole_run(undisturbed: Path) -> None:
    assert steps_of(undisturbed) == [8, 10, 12]
    log = log_of(undisturbed)
    assert [(r["step"], r["epoch"]) for r in log] == [
        (3, 0), (6, 0), (6, 0), (9, 1), (12, 1), (12, 1),
    ]  # fmt: skip
    epochs = [r for r in log if "train_loss" in r]
    steps = [r for r in log if "loss" in r]
    for epoch, (first, second) in zip(epochs, (steps[:2], steps[2:]), strict=True):
        for part in ("loss", "loss_itc", "loss_itm", "loss_lm"):
            mean = (first[part] + second[part]) / 2
            assert epoch[f"train_{part}"] == pytest.approx(mean, rel=1e-6)
    assert steps[-1]["loss_lm"] < steps[0]["loss_lm"]
    for record in steps:
        parts = record["loss_itc"] + record["loss_itm"] + record["loss_lm"]
        assert record["loss"] == pytest.approx(parts) and record["grad_norm"] > 0
        assert record["images_per_second"] > 0 and 0 < record["mfu"] < 1
        assert 0 <= record["data_wait"] < 1 and record["peak_memory_bytes"] > 1e7
    assert steps[-1]["lr"] == pytest.approx(0.9e-3)
    exported = read_checkpoint(undisturbed / "model")
    state = state_of(undisturbed)
    assert exported.config.kind == "pretrain" and exported.tokenizer is not None
    for name, tensor in exported.state.items():
        assert torch.equal(tensor, state[f"objective.model.{name}"]), name


def test_killed_at_random_steps_and_resumed(undisturbed: Path, tmp_path: Path) -> None:
    """At the start of a step, or while a checkpoint is written beside the training."""
    draw = random.Random(7)
    deaths = [
        Faults(kill_in_save=1),
        Faults(kill_at=draw.randint(3, 5)),
        Faults(kill_in_save=2),
        Faults(kill_at=draw.randint(3, 5)),
    ]
    for faults in deaths:
        assert run_processes(run, 1, tmp_path, "pretrain", {"log_steps": 3}, faults) == [-9]
    assert run_processes(run, 1, tmp_path, "pretrain", {"log_steps": 3}) == [0]
    assert_same_run(tmp_path, undisturbed)


def test_terminated_and_resumed(undisturbed: Path, tmp_path: Path) -> None:
    changes = {"log_steps": 3, "checkpoint_steps": 100}
    terminate = Faults(terminate_at=3)
    assert run_processes(run, 1, tmp_path, "pretrain", changes, terminate) == [143]
    assert steps_of(tmp_path) == [3]
    # In the last step of an epoch, where the model is written, too.
    assert run_processes(run, 1, tmp_path, "pretrain", changes, terminate) == [143]
    assert steps_of(tmp_path) == [3, 6] and (tmp_path / "model").is_dir()
    assert run_processes(run, 1, tmp_path, "pretrain", changes) == [0]
    assert_same_run(tmp_path, undisturbed)


def test_two_processes(tmp_path: Path) -> None:
    """They end where one with the doubled batch does; one is told to stop, both leave; what they
    left, one goes on with, and two again."""
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"checkpoint_steps": 100, "init_lr": 1e-5, "text_dropout": 0.0}
    start = dict(tiny_objective().model.named_parameters())
    train_here(one, batch_size=4, **changes)
    stop = Faults(terminate_at=2)
    for number, faults, code in ((2, stop, 143), (1, stop, 143), (2, Faults(), 0)):
        job = two, "caption", {**changes, "batch_size": 4 // number}, faults
        assert run_processes(run, number, *job) == [code] * number
    a, b = state_of(one), state_of(two)
    assert steps_of(two) == [3, 4, 6]  # told to stop at 2, before an epoch ended, and at 4
    for name in start:
        mine, other = (s[f"objective.model.{name}"] for s in (a, b))
        moment, other_moment = (s[f"optimizer.model.{name}.exp_avg"] for s in (a, b))
        assert (moment - other_moment).abs().max() <= 1e-5 * moment.abs().max(), name
        # AdamW makes whole steps of gradients that are nothing but rounding.
        felt = moment.abs() > 1e-5 * moment.abs().max()
        assert (mine - other)[felt].abs().max() <= 1e-5 * other.abs().max(), name
        assert not torch.equal(mine, start[name]), name
    for mine, other in zip(log_of(one), log_of(two), strict=True):
        for name, value in learned(mine).items():
            assert other[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("nan", ["loss", "gradient"])
@pytest.mark.parametrize("ahead", [0, 1], ids=["at once", "a step later"])
def test_non_finite_step_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nan: str, ahead: int
) -> None:
    """As on a CPU, and as on a GPU; in both, nothing is saved of a step that was not looked at."""
    monkeypatch.setattr(loop, "Vigil", partial(Vigil, ahead=ahead))
    what = "the loss lm is nan in the batch of" if nan == "loss" else "gradients are not finite"
    with pytest.raises(NonFinite, match=rf"^step 5: {what}.* sample 8, poison\. The checkpoints"):
        train_here(tmp_path, Faults(nan=nan), checkpoint_steps=1)
    assert steps_of(tmp_path) == [2, 3, 4]
    assert all(t.isfinite().all() for t in state_of(tmp_path).values() if t.is_floating_point())
    assert train_here(tmp_path, checkpoint_steps=1).resumed_from == 4


def test_all_processes_name_the_step_of_one(tmp_path: Path) -> None:
    job = tmp_path, "caption", {"checkpoint_steps": 1}, Faults(nan="loss"), POISON
    assert run_processes(run_and_tell, 2, tmp_path / "error", *job) == [1, 1]
    for rank in range(2):
        message = (tmp_path / f"error.{rank}").read_text()
        assert message.startswith(
            "step 3: the loss lm is nan in the batch of sample 8, poison. The"
        )
    assert steps_of(tmp_path) == [1, 2]


def test_looking_later_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, later = tmp_path / "at once", tmp_path / "later"
    train_here(at_once)
    monkeypatch.setattr(loop, "Vigil", partial(Vigil, ahead=1))
    train_here(later)
    assert_same_run(later, at_once)


def test_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train_here(tmp_path)
    assert first == Summary(STEPS, 2, None, first.losses, tmp_path / "model")
    log = (tmp_path / "log.jsonl").read_bytes()
    capsys.readouterr()
    again = train_here(tmp_path)
    assert again == Summary(STEPS, 2, STEPS, {}, tmp_path / "model")
    assert "this run finished at step 12, epoch 2" in capsys.readouterr().out
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_progress_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(tmp_path, max_steps=2, log_steps=2)
    line = capsys.readouterr().out.strip()
    pattern = (
        r"epoch 0  step 2/2  loss [\d.]+  lm [\d.]+  lr 5.01e-04  [\d.]+ images/s  MFU [\d.]+%  "
        r"memory [\d.]+ GB  waiting for data [\d.]+%"
    )
    assert re.fullmatch(pattern, line), line


def test_end_by_steps_and_longer_afterwards(tmp_path: Path) -> None:
    """A run that ended by its steps goes on when it is allowed more, as if never stopped."""
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert train_here(short, max_steps=4).step == 4
    assert steps_of(short) == [2, 4] and (short / "model").is_dir()
    goes_on, at_once = train_here(short, max_steps=9), train_here(whole, max_steps=9)
    assert goes_on == Summary(9, 1, 4, at_once.losses, short / "model")
    weights = "model/model.safetensors"
    assert (short / weights).read_bytes() == (whole / weights).read_bytes()


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    options = {"max_epoch": 1, "init_lr": 1e-5, "clip_grad_norm": 0.1, "freeze_vision": True}
    train_here(small, batch_size=2, accumulate=2, **options)
    train_here(large, batch_size=4, **options)
    a, b = state_of(small), state_of(large)
    assert a["optimizer.model.lm_head.bias.step"] == 3
    for name, tensor in a.items():
        if name.startswith("objective.model."):
            torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-5 * b[name].abs().max())
    start = dict(tiny_objective().model.named_parameters())
    name = "vision.blocks.0.qkv.weight"
    assert torch.equal(a[f"objective.model.{name}"], start[name])


def test_other_settings_are_refused(tmp_path: Path) -> None:
    train_here(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="seed was 42 and is 43"):
        train_here(tmp_path, seed=43)
    with pytest.raises(ValueError, match="belongs to another run: .*model was"):
        train_here(tmp_path, task="pretrain")


def test_too_few_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few samples for one step of 14: batch_size 14"):
        train_here(tmp_path, batch_size=14)


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ValueError, match="another run is writing"):
        train_here(tmp_path)
    assert train_here(tmp_path, max_steps=1).step == 1
