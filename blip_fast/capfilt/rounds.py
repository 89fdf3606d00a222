"""Several rounds of bootstrapping: CapFilt, training on what it kept, and CapFilt with the result.

The paper names this among its future directions (BLIP, section 6). The training between two rounds
is somebody else's command, which gets the kept pairs and says where its models are by leaving them
in a folder.

    round_01/            a CapFilt run, as `run_capfilt` leaves it
    round_01_models/     what the commands after it left: captioner, filter, or model for both
    rounds.json          the commands, and which models the rounds so far ended with
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blip_fast.capfilt.ledger import Ledger
from blip_fast.capfilt.summary import TOTALS
from blip_fast.data import displayable, write_json
from blip_fast.train.guard import STOPPED

ROUNDS = "rounds.json"
PLACES = ("kept", "round", "output", "captioner", "filter")
_NAMED = re.compile(r"\{([A-Za-z_]+)\}")

# A round's folder, captioner and filter, as names that `blip_fast.load` takes.
RunRound = Callable[[Path, str, str], object]


@dataclass(frozen=True)
class Pair:
    """The models of a round."""

    captioner: str
    filter: str


def run_rounds(
    output: Path, rounds: int, commands: Sequence[str], first: Pair, run: RunRound
) -> list[Path]:
    """Run CapFilt so many times, and the commands between two of them; finished parts stay.

    The same call goes on where one was stopped. More rounds can be asked for later.

    Args:
        output: a folder for all of them.
        commands: run after each round but the last, in order, without a shell. In their words
            {kept} is the round's folder of tar shards, {round} its number from 1, {captioner} and
            {filter} its models, and {output} the folder in which to leave `captioner` or `filter`,
            or `model` for both: a checkpoint, or a training run's folder with `model` in it. A
            model that is not there stays what it was.
        first: the models of the first round.
        run: does one round, or goes on with it.

    Returns:
        the folders of the rounds.

    Raises:
        ValueError: where commands lack a place or differ from those the folder began with, one
            fails or leaves no model, or other processes are still at work on a round.
        SystemExit: with code 143, where SIGTERM comes while a command runs.
    """
    check_commands(rounds, commands)
    output.mkdir(parents=True, exist_ok=True)
    pairs = _begun(output, commands, first)
    folders = []
    for number in range(1, rounds + 1):
        folder = output / round_name(number)
        folders.append(folder)
        pair = pairs[number - 1]
        if not (folder / TOTALS).exists():
            run(folder, pair.captioner, pair.filter)
        if not (folder / TOTALS).exists():
            raise ValueError(
                f"round {number} in {displayable(folder)} is not complete: others are at work on "
                "it, or it was given a part of the shards. Give the same command when it is"
            )
        if number < rounds and len(pairs) == number:
            models = output / f"{round_name(number)}_models"
            with _alone(models, commands, number):
                pairs = _begun(output, commands, first)
                if len(pairs) == number:  # else another process has, in the meantime
                    for command in commands:
                        _run(words(command, folder, number, models, pair), number)
                    pairs.append(_left(models, pair, number))
                    _note(output, commands, pairs)
    return folders


def round_name(number: int) -> str:
    """Of the folder of a round, from 1."""
    return f"round_{number:02d}"


def check_commands(rounds: int, commands: Sequence[str]) -> None:
    """
    Raises:
        ValueError: where there is none though rounds need one, one cannot be read, names a place
            that there is not, or none names {output}.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds were asked for; ask for 1 at least")
    if rounds > 1 and not commands:
        raise ValueError(
            f"{rounds} rounds need a command that trains between them; without one every round "
            "would be the first again"
        )
    for command in commands:
        try:
            parts = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"the command {command!r} cannot be read: {error}") from None
        if not parts:
            raise ValueError("a command is empty")
        unknown = [name for name in _NAMED.findall(command) if name not in PLACES]
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in PLACES)
            raise ValueError(f"{{{unknown[0]}}} in {command!r} is none of {known}")
    if commands and not any("{output}" in command for command in commands):
        raise ValueError(f"no command names {{output}}, where its models must be: {commands[-1]!r}")


def words(command: str, kept: Path, number: int, output: Path, pair: Pair) -> list[str]:
    """The words of a command with its places filled in; what is filled in is never split."""
    values = {
        "kept": str(kept.absolute()),
        "round": str(number),
        "output": str(output.absolute()),
        **asdict(pair),
    }
    return [_NAMED.sub(lambda found: values[found[1]], word) for word in shlex.split(command)]


@contextmanager
def _alone(models: Path, commands: Sequence[str], number: int) -> Iterator[None]:
    """Hold the folder that commands write to; what died holding it does not any more.

    Raises:
        ValueError: where another process is at it.
    """
    with Ledger(models, {"commands": list(commands)}) as ledger:
        if not list(ledger.take([0])):
            owner = ", ".join(ledger.held_by_others().values()) or "another process"
            raise ValueError(
                f"{owner} runs the commands after round {number}; give the same command when they "
                "have ended"
            )
        yield


def _run(command: Sequence[str], number: int) -> None:
    """Run to the end; what it prints goes to standard error."""
    print(f"after round {number}: {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2)
    except OSError as error:
        raise ValueError(
            f"the command after round {number} cannot be started: {error}. What is done stays"
        ) from error
    with _passing_on(process) as stopped:
        code = process.wait()
    if stopped:
        raise SystemExit(STOPPED)
    if code:
        raise ValueError(
            f"the command after round {number} ended with code {code}: {shlex.join(command)}. "
            "What is done stays; the same call goes on"
        )


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Give SIGTERM on to a process; the list is empty where none came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # only the main thread can have a signal
        return

    def give_on(number: int, _: Any) -> None:
        came.append(number)
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, give_on)
    try:
        yield came
    except BaseException:  # as Ctrl-C, which a terminal gives to both
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _left(models: Path, pair: Pair, number: int) -> Pair:
    """The models that the commands left, each where there is one."""
    both = _checkpoint(models / "model")
    captioner = _checkpoint(models / "captioner") or both
    filter_ = _checkpoint(models / "filter") or both
    if captioner is None and filter_ is None:
        raise ValueError(
            f"the commands after round {number} left neither captioner nor filter nor model in "
            f"{displayable(models)}, so the next round would be the same again"
        )
    return Pair(captioner or pair.captioner, filter_ or pair.filter)


def _checkpoint(path: Path) -> str | None:
    """A checkpoint's folder or file of a name, or that within a training run's folder."""
    inner = path / "model"
    files = (path.with_name(path.name + suffix) for suffix in (".safetensors", ".pth"))
    for found in (inner, path, *files):
        if found.exists():
            return str(found.absolute())
    return None


def _begun(output: Path, commands: Sequence[str], first: Pair) -> list[Pair]:
    """The models of the rounds so far; those of the first, where none has been."""
    try:
        held = json.loads((output / ROUNDS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        _note(output, commands, [first])
        return [first]
    pairs = [Pair(**pair) for pair in held["models"]]
    changed: list[tuple[str, Any, Any]] = []
    if held["commands"] and held["commands"] != list(commands):
        changed.append(("the commands", held["commands"], list(commands)))
    if pairs[0] != first:
        changed.append(("the models", asdict(pairs[0]), asdict(first)))
    for what, theirs, ours in changed:
        raise ValueError(
            f"{displayable(output)} was begun with {what} {theirs!r}, and {ours!r} are asked for; "
            "ask for the same, or give another output folder"
        )
    return pairs


def _note(output: Path, commands: Sequence[str], pairs: Sequence[Pair]) -> None:
    write_json(
        output / ROUNDS, {"commands": list(commands), "models": [asdict(pair) for pair in pairs]}
    )
