"""`pytest bench`: every case of every room in pytest-benchmark's tables, a group for each case.

pytest-benchmark would time one contender after the other. Here the stopwatch of `harness.py` times
them in turns, for `BENCH_SECONDS` (0.2) a case, and each test only replays its contender's turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.harness import Case, Timing, made_on, race

ROOMS = sorted(p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py"))
DEVICE = torch.device(os.environ.get("BENCH_DEVICE", "cpu"))


class Replay:
    """A timer for pytest-benchmark that shows recorded durations, one after the other."""

    __name__ = "recorded"

    def __init__(self) -> None:
        self.now = 0.0
        self._turns: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now

    def load(self, turns: tuple[float, ...]) -> None:
        self._turns = iter(turns)

    def advance(self) -> None:
        self.now += next(self._turns, 0.0)


REPLAY = Replay()


def cases_of(room: str) -> Iterator[Case]:
    return made_on(DEVICE, import_module(f"bench.bench_{room}").cases())


@lru_cache(maxsize=1)
def raced(room: str, number: int) -> tuple[Case, dict[str, Timing]]:
    """The race of one case; its contenders' tests follow each other, so one is kept."""
    case = next(case for i, case in enumerate(cases_of(room)) if i == number)
    return case, race(case, float(os.environ.get("BENCH_SECONDS", "0.2")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Names alone are collected; a case's tensors live only while it is made or raced."""
    found = [
        pytest.param(room, number, name, id=f"{room}-{number}-{name}",
                     marks=pytest.mark.benchmark(group=f"{room}: {case.name}", timer=REPLAY))
        for room in ROOMS
        for number, case in enumerate(cases_of(room))
        for name in case.contenders
    ]  # fmt: skip
    metafunc.parametrize(("room", "number", "contender"), found)


def test_room(benchmark: Any, room: str, number: int, contender: str) -> None:
    case, timings = raced(room, number)
    timing, ours = timings[contender], next(iter(timings.values()))
    benchmark.extra_info |= {
        "rate": case.amount / timing.median,
        "unit": f"{case.unit}/s",
        "ratio": timing.median / ours.median,
        "20%": timing.low,
        "80%": timing.high,
        "threads": torch.get_num_threads(),
    }
    REPLAY.load(timing.turns)
    benchmark.pedantic(REPLAY.advance, rounds=len(timing.turns))
