"""The log of a run: no line twice, none half, and no package imported that nobody asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from training import CPU

from blip_fast.train.vigil import Seen
from blip_fast.train.watch import Watch


def watch(output: Path, **changes: Any) -> Watch:
    options: dict[str, Any] = dict(
        writes=True, log_steps=2, loggers=[], peak=1e12, say=lambda line: None
    )
    return Watch(output, CPU, **{**options, **changes})


def seen(step: int, **changes: Any) -> Seen:
    values: dict[str, Any] = dict(rate=0.5, losses={"lm": step / 4, "itm": 1.0}, norm=2.0)
    return Seen(step, **{**values, **changes}, stop=False, skipped=3)


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    log = watch(tmp_path, say=lines.append)
    for step in range(1, 5):
        log.measure(images=8, flops=10**9, waited=0.0)
        log.add(seen(step), epoch=0, of=4)
    log.end_epoch(0, 4)
    first, second, epoch = log_of(tmp_path)
    assert first["step"] == 2 and first["loss_lm"] == 0.375 and first["loss"] == 1.375
    assert second["step"] == 4 and second["loss_lm"] == 0.875 and second["skipped"] == 3
    assert epoch == {
        "train_loss": 1.625, "train_loss_lm": 0.625, "train_loss_itm": 1.0, "train_lr": 0.5,
        "epoch": 0, "step": 4,
    }  # fmt: skip
    rates = first["images_per_second"] / first["mfu"]
    assert rates == pytest.approx(16 / (2e9 / 1e12))
    assert len(lines) == 2 and "step 2/4  loss 1.3750  lm 0.3750  itm 1.0000" in lines[0]
    assert lines[0].endswith("bad samples 3")


def test_resumed_log_has_no_step_twice(tmp_path: Path) -> None:
    log = watch(tmp_path)
    for step in range(1, 4):
        log.add(seen(step), epoch=0, of=9)
    state = json.loads(json.dumps(log.state()))
    for step in range(4, 8):
        log.add(seen(step), epoch=0, of=9)
    with (tmp_path / "log.jsonl").open("a") as half:
        half.write('{"step": 1, "lo')
    log = watch(tmp_path, step=3, state=state)
    log.add(seen(4), epoch=0, of=9)
    log.end_epoch(0, 4)
    assert [record["step"] for record in log_of(tmp_path)] == [2, 4, 4]
    assert log_of(tmp_path)[1]["loss_lm"] == 0.875  # step 3 counts, which came before the break
    assert log_of(tmp_path)[2]["train_loss_lm"] == 0.625


def test_only_one_process_writes(tmp_path: Path) -> None:
    log = watch(tmp_path, writes=False, loggers=["tensorboard"])
    log.add(seen(2), epoch=0, of=9)
    log.end_epoch(0, 2)
    log.close()
    assert not list(tmp_path.iterdir())


def test_loggers_are_imported_when_asked_for() -> None:
    code = (
        "import sys, blip_fast.train.loop;"
        "print(sorted({'tensorboard', 'wandb', 'torch.utils.tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Recorder(ModuleType):
    """Stands in for both packages and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.opened: list[Any] = []
        self.got: list[Any] = []

    def init(self, **options: Any) -> SimpleNamespace:
        self.opened.append(options)

        def log(values: dict[str, Any], step: int) -> None:
            self.got.extend((name, value, step) for name, value in values.items())

        return SimpleNamespace(log=log, finish=lambda: self.got.append("end"))

    def SummaryWriter(self, folder: Path, purge_step: int | None) -> SimpleNamespace:
        self.opened.append((folder, purge_step))

        def add(*scalar: Any) -> None:
            self.got.append(scalar)

        return SimpleNamespace(add_scalar=add, close=lambda: self.got.append("end"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_loggers_get_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", recorder)
    log = watch(tmp_path, loggers=[name], step=7)
    log.add(seen(8), epoch=1, of=9)
    log.close()
    if name == "tensorboard":
        assert recorder.opened == [(tmp_path / "tensorboard", 8)]
    else:
        assert recorder.opened[0]["resume"] == "allow" and recorder.opened[0]["dir"] == tmp_path
    assert ("loss_lm", 2.0, 8) in recorder.got and ("epoch", 1, 8) in recorder.got
    assert recorder.got[-1] == "end"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=f"needs the package {name}.* pip install {name}"):
        watch(tmp_path, loggers=[name])


def test_unknown_logger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no logger 'csv'; there are tensorboard, wandb"):
        watch(tmp_path, loggers=["csv"])
