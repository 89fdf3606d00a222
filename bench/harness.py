"""The stopwatch that all benches share.

Contenders take turns, so that a machine that slows down slows them all; the figures are medians of
the turns, with the spread from the 20th to the 80th percentile. Results are compared before any
time is printed: a wrong contender is an error, not a row. Read the ratios, which are of one run;
absolute times belong to the machine and its neighbours.

Usage: python -m bench.bench_attention [--seconds 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One problem and those who solve it.

    Attributes:
        contenders: name to a call without arguments that returns the result; ours is the first.
        amount: what a call has to do at the least, in `unit`: the smallest number of bytes that
            must move, the operations of the mathematics (a multiply-add is two), or images.
    """

    name: str
    contenders: dict[str, Callable[[], Tensor]]
    amount: float
    unit: Literal["byte", "FLOP", "image"]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, and the 20th and 80th percentile."""

    median: float
    low: float
    high: float


def race(case: Case, seconds: float, check: bool = True) -> dict[str, Timing]:
    """Time all contenders in turns, at least 5 each, for about `seconds` in all.

    Args:
        check: compare results first; left out only by a caller that has compared them itself.

    Raises:
        AssertionError: where results differ.
    """
    if check:
        _check(case)
    turns: dict[str, list[float]] = {name: [] for name in case.contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(turns.values()))) < 5:
        for name, call in case.contenders.items():
            start = time.perf_counter()
            call()
            turns[name].append(time.perf_counter() - start)
    return {name: _timing(samples) for name, samples in turns.items()}


def _check(case: Case) -> None:
    """Run everyone once, which also warms up, and compare with the first.

    Twice the dtype's rounding a step is what two right answers may differ by, and sums of many
    terms take several steps: 16 epsilons of the largest value.
    """
    (first, expected), *others = [(name, call()) for name, call in case.contenders.items()]
    for name, result in others:
        allowed = 16 * torch.finfo(expected.dtype).eps * expected.float().abs().max()
        error = (result.float() - expected.float()).abs().max()
        assert error <= allowed, (
            f"{case.name}: {name} differs from {first} by {error:.3g}, allowed is {allowed:.3g}"
        )


def _timing(samples: list[float]) -> Timing:
    cuts = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), cuts[0], cuts[3])


def print_table(rows: Iterable[tuple[Case, dict[str, Timing]]]) -> None:
    """Print each case as it comes; a ratio is a contender's time over ours."""
    print(f"{'case':48} {'contender':26} {'ms':>9} {'20-80%':>19} {'rate':>15} {'ratio':>6}")
    for case, timings in rows:
        ours = next(iter(timings.values())).median
        for name, t in timings.items():
            amount, prefix = (case.amount / 1e9, "G") if case.unit != "image" else (case.amount, "")
            rate = f"{amount / t.median:.2f} {prefix}{case.unit}/s"
            spread = f"{t.low * 1e3:.3f}-{t.high * 1e3:.3f}"
            print(
                f"{case.name:48} {name:26} {t.median * 1e3:9.3f} {spread:>19} {rate:>15} "
                f"{t.median / ours:6.2f}"
            )


def main(cases: Iterable[Case]) -> None:
    """Race the cases and print a table; the entry point of every bench of a room."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {platform.machine()}")
    with torch.inference_mode():
        print_table((case, race(case, arguments.seconds)) for case in cases)
