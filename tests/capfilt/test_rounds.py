from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from capfilt_stub import StubBlip

from blip_fast.capfilt import CapFiltOptions, run_capfilt
from blip_fast.capfilt.ledger import Ledger
from blip_fast.capfilt.rounds import ROUNDS, Pair, check_commands, run_rounds, words
from blip_fast.data import open_source

FIRST = Pair("cap-0", "filter-0")
OPTIONS = CapFiltOptions(batch_size=4)

# What stands for training: it notes its arguments and leaves a model, or fails where told to.
TRAIN = """
import json, pathlib, sys
kept, number, output, captioner = sys.argv[1:]
output = pathlib.Path(output)
shards = sorted(path.name for path in pathlib.Path(kept).glob("*.tar"))
with (output.parent / "calls").open("a") as file:
    file.write(json.dumps([number, captioner, shards]) + "\\n")
if (output.parent / "fail").exists():
    sys.exit(3)
(output / "captioner").mkdir(exist_ok=True)
print("trained")
"""


class Runs:
    """Notes which models each round had; a real run with stubs."""

    def __init__(self, source: Path) -> None:
        self.source, self.calls = source, []

    def __call__(self, folder: Path, captioner: str, filter_: str) -> None:
        self.calls.append((folder.name, Path(captioner).name, filter_))
        model: Any = StubBlip()
        run_capfilt(self.source, folder, model, model, OPTIONS)


@pytest.fixture
def runs(source: Path) -> Runs:
    return Runs(source)


@pytest.fixture
def train(tmp_path: Path) -> str:
    script = tmp_path / "with space" / "train.py"
    script.parent.mkdir()
    script.write_text(TRAIN, encoding="utf-8")
    return f"'{sys.executable}' '{script}' {{kept}} {{round}} {{output}} {{captioner}}"


def calls(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_each_round_has_the_models_of_the_last(tmp_path: Path, runs: Runs, train: str) -> None:
    out = tmp_path / "out"
    folders = run_rounds(out, 3, [train], FIRST, runs)
    assert [folder.name for folder in folders] == ["round_01", "round_02", "round_03"]
    assert runs.calls == [
        ("round_01", "cap-0", "filter-0"),
        ("round_02", "captioner", "filter-0"),
        ("round_03", "captioner", "filter-0"),
    ]
    second = str(out / "round_01_models/captioner")
    assert calls(out) == [["1", "cap-0", ["00000.tar"]], ["2", second, ["00000.tar"]]]
    held = json.loads((out / ROUNDS).read_text(encoding="utf-8"))["models"]
    assert [pair["captioner"] for pair in held] == [
        "cap-0", second, str(out / "round_02_models/captioner"),
    ]  # fmt: skip


def test_what_is_kept_can_be_trained_on(tmp_path: Path, runs: Runs) -> None:
    (folder,) = run_rounds(tmp_path / "out", 1, [], FIRST, runs)
    opened = open_source(folder)
    shard = opened.open(0)
    assert len(shard) == 8 and "a good text" in {shard[n].text for n in range(8)}


def test_a_finished_part_is_not_done_again(tmp_path: Path, runs: Runs, train: str) -> None:
    out = tmp_path / "out"
    run_rounds(out, 2, [train], FIRST, runs)
    run_rounds(out, 2, [train], FIRST, runs)
    assert len(runs.calls) == 2 and len(calls(out)) == 1
    run_rounds(out, 3, [train], FIRST, runs)  # one more
    assert [name for name, *_ in runs.calls] == ["round_01", "round_02", "round_03"]
    assert len(calls(out)) == 2


def test_a_command_that_fails_is_run_again(tmp_path: Path, runs: Runs, train: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "fail").touch()
    with pytest.raises(ValueError, match="after round 1 ended with code 3"):
        run_rounds(out, 2, [train], FIRST, runs)
    (out / "fail").unlink()
    run_rounds(out, 2, [train], FIRST, runs)
    assert [name for name, *_ in runs.calls] == ["round_01", "round_02"]
    assert len(calls(out)) == 2


def test_several_commands_and_where_models_may_be(tmp_path: Path, runs: Runs) -> None:
    make = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True)"
    commands = [  # a training run's folder, as `blip-fast train` leaves it, and a file
        f"{sys.executable} -c '{make}' {{output}}/captioner/model",
        f"{sys.executable} -c '{make}' {{output}}/filter.pth",
    ]
    run_rounds(tmp_path / "a", 2, commands, FIRST, runs)
    folder = tmp_path / "a/round_01_models"
    assert runs.calls[-1][1:] == ("model", str(folder / "filter.pth"))
    run_rounds(tmp_path / "b", 2, [f"{sys.executable} -c '{make}' {{output}}/model"], FIRST, runs)
    both = tmp_path / "b/round_01_models/model"
    assert runs.calls[-1] == ("round_02", "model", str(both))


def test_a_command_without_a_model(tmp_path: Path, runs: Runs) -> None:
    with pytest.raises(ValueError, match="left neither captioner nor filter nor model"):
        run_rounds(tmp_path / "out", 2, [f"{sys.executable} -c pass {{output}}"], FIRST, runs)
    with pytest.raises(ValueError, match="cannot be started"):
        run_rounds(tmp_path / "b", 2, ["/no/such/program {output}"], FIRST, runs)


def test_a_round_that_others_work_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="round 1 .* is not complete"):
        run_rounds(tmp_path / "out", 2, ["true {output}"], FIRST, lambda *_: None)


def test_other_commands_or_models_are_refused(tmp_path: Path, runs: Runs, train: str) -> None:
    out = tmp_path / "out"
    run_rounds(out, 1, [], FIRST, runs)
    run_rounds(out, 2, [train], FIRST, runs)  # none were asked for before
    with pytest.raises(ValueError, match="was begun with the commands"):
        run_rounds(out, 2, [train + " more"], FIRST, runs)
    with pytest.raises(ValueError, match="was begun with the models"):
        run_rounds(out, 2, [train], Pair("other", "filter-0"), runs)


def test_what_is_filled_in_is_one_word(tmp_path: Path) -> None:
    kept = tmp_path / "a b; rm -rf $HOME"
    pair = Pair("c'\"d", "{round}")
    command = "train 'x {kept} y' --n={round} {captioner} {filter} {0..9} {output}/m"
    assert words(command, kept, 2, Path("/o"), pair) == [
        "train", f"x {kept} y", "--n=2", "c'\"d", "{round}", "{0..9}", "/o/m",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rounds", "commands", "message"),
    [
        (0, [], "0 rounds"),
        (2, [], "2 rounds need a command"),
        (2, ["train {kpet} {output}"], r"\{kpet\} in 'train .* is none of \{kept\}"),
        (2, ["train {kept}"], r"no command names \{output\}"),
        (2, ["train 'x {output}"], "cannot be read: No closing quotation"),
        (2, [" ", "{output}"], "a command is empty"),
    ],
)
def test_commands_are_checked_before_work(rounds: int, commands: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_commands(rounds, commands)


STOPPED = """
import sys
from pathlib import Path
from blip_fast.capfilt.rounds import Pair, run_rounds

def run(folder, captioner, filter_):
    folder.mkdir()
    (folder / "totals.json").write_text("{}")

run_rounds(Path(sys.argv[1]), 2, [sys.argv[2]], Pair("a", "b"), run)
"""
WAITING = """
import pathlib, signal, sys
def stop(*_):
    pathlib.Path(sys.argv[1], "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", file=sys.stderr, flush=True)
signal.pause()
"""


def test_sigterm_reaches_the_command(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(WAITING, encoding="utf-8")
    command = f"{sys.executable} {script} {{output}}"
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(out), command],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        text=True,
    )
    assert process.stderr is not None
    while "ready" not in (line := process.stderr.readline()):
        assert line, "it has ended"
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait() == 143
    assert (out / "round_01_models/stopped").exists()
    assert len(json.loads((out / ROUNDS).read_text())["models"]) == 1


def test_two_processes_do_not_train_at_once(tmp_path: Path, runs: Runs, train: str) -> None:
    out = tmp_path / "out"
    run_rounds(out, 1, [], FIRST, runs)
    with Ledger(out / "round_01_models", {"commands": [train]}) as other:
        assert list(other.take([0])) == ["00000"]
        with pytest.raises(ValueError, match=f"{other.name} runs the commands after round 1"):
            run_rounds(out, 2, [train], FIRST, runs)
    run_rounds(out, 2, [train], FIRST, runs)
    assert len(calls(out)) == 1 and not (out / "round_01_models/.work").exists()
