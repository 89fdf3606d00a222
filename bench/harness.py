"""The stopwatch that all benches share; README.md beside it says what its numbers mean.

Contenders take turns in a shuffled order, so that a machine that slows down slows them all; the
figures are medians of the turns, with the spread from the 20th to the 80th percentile. Results are
compared before and after: a wrong contender is an error, not a row. Read the ratios, which are of
one run; absolute times belong to the machine and its neighbours.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.machine import cache_bytes

Result = Tensor | tuple[Tensor, ...]

MIN_TURNS = 5


class WrongResult(ValueError):
    """A contender's result differs from ours; it is not timed."""


@dataclass(frozen=True)
class Case:
    """One problem and those who solve it.

    Attributes:
        contenders: name to a call without arguments that returns the result; ours is the first.
            Calls run without gradients, unless they enable them themselves.
        amount: what a call has to do at the least, in `unit`: the smallest number of bytes that
            must move, the operations of the mathematics (a multiply-add is two), or images.
        allowed: by what share of the largest value results may differ; by default 16 roundings
            of their dtype. For contenders of lower precision by intent, as int8.
    """

    name: str
    contenders: dict[str, Callable[[], Result]]
    amount: float
    unit: Literal["byte", "FLOP", "image"]
    allowed: float | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of every turn, in the order in which they were taken."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def low(self) -> float:
        """The 20th percentile."""
        return self._fifths[0]

    @property
    def high(self) -> float:
        """The 80th percentile."""
        return self._fifths[3]

    @property
    def _fifths(self) -> list[float]:
        return statistics.quantiles(self.turns, n=5, method="inclusive")


def race(
    case: Case,
    seconds: float,
    check: bool = True,
    cold: bool | None = None,
    turns_at_least: int = MIN_TURNS,
) -> dict[str, Timing]:
    """Time all contenders in turns, at least 5 each, for about `seconds` in all.

    Args:
        turns_at_least: fewer than 5, but 2, for calls that take many seconds each.
        check: compare results; left out only by a caller that has compared them itself.
        cold: empty the caches before every turn; by default on a GPU and not on a CPU.

    Raises:
        WrongResult: where results differ, before the first turn or in the last.
    """
    turns_at_least = max(2, turns_at_least)
    order = list(case.contenders.items())
    shuffle = random.Random(0).shuffle
    with torch.no_grad():
        results = {name: call() for name, call in order}  # also warms up
        if check:
            _compare(case, results)
        watch = _Stopwatch(_tensors(next(iter(results.values())))[0].device, cold)
        turns: dict[str, list[float]] = {name: [] for name in case.contenders}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(next(iter(turns.values()))) < turns_at_least:
            shuffle(order)
            for name, call in order:
                del results[name]  # as in a program, where the memory of it serves again
                duration, results[name] = watch.time(call)
                turns[name].append(duration)
        if check:
            _compare(case, {name: results[name] for name in case.contenders})
    return {name: Timing(tuple(durations)) for name, durations in turns.items()}


class _Stopwatch:
    """Times calls on one device, between synchronisations where it runs behind Python."""

    def __init__(self, device: torch.device, cold: bool | None) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda if cold is None else cold:
            self._flush = torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device)
        else:
            self._flush = torch.empty(0, dtype=torch.uint8, device=device)

    def time(self, call: Callable[[], Result]) -> tuple[float, Result]:
        """Seconds of a call, and its result."""
        if self._cuda:
            return self._time_cuda(call)
        self._flush.fill_(0)
        start = time.perf_counter()
        result = call()
        return time.perf_counter() - start, result

    def _time_cuda(self, call: Callable[[], Result]) -> tuple[float, Result]:
        """From event to event. Python enqueues the call while the device still fills the buffer."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._flush.fill_(0)
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, result


def _tensors(result: Result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _compare(case: Case, results: dict[str, Result]) -> None:
    """Hold every result against the first one.

    A right answer may differ from another by a few roundings of each step, and sums of many terms
    take several: 16 epsilons of the largest value. Integers must be equal.
    """
    (first, expected), *others = results.items()
    for name, result in [(first, expected), *others]:
        for theirs, ours in zip(_tensors(result), _tensors(expected), strict=True):
            if theirs.shape != ours.shape:
                raise WrongResult(f"{case.name}: {name} gives {tuple(theirs.shape)}, {first} "
                                  f"{tuple(ours.shape)}")  # fmt: skip
            error, allowed = _difference(theirs, ours, case.allowed)
            if not error <= allowed:  # NaN is not, either
                raise WrongResult(
                    f"{case.name}: {name} differs from {first} by {error:.3g}, allowed is "
                    f"{allowed:.3g}; a wrong result is not timed"
                )


def _difference(theirs: Tensor, ours: Tensor, share: float | None) -> tuple[float, float]:
    """The largest difference, and the allowed one."""
    if not ours.numel():
        return 0.0, 0.0
    if share is None:
        share = 16 * torch.finfo(ours.dtype).eps if ours.is_floating_point() else 0.0
    error = (theirs.double() - ours.double()).abs().max().item()
    return error, share * ours.double().abs().max().item()


def print_table(rows: Iterable[tuple[Case, dict[str, Timing]]]) -> None:
    """Print each case as it comes; a ratio is a contender's time over ours."""
    print(f"{'case':48} {'contender':26} {'ms':>9} {'20-80%':>19} {'rate':>15} {'ratio':>6}")
    for case, timings in rows:
        ours = next(iter(timings.values())).median
        for name, t in timings.items():
            spread = f"{t.low * 1e3:.3f}-{t.high * 1e3:.3f}"
            print(
                f"{case.name:48} {name:26} {t.median * 1e3:9.3f} {spread:>19} "
                f"{rate(case, t):>15} {t.median / ours:6.2f}",
                flush=True,
            )


def rate(case: Case, timing: Timing) -> str:
    """The amount of work a second, in words."""
    amount, prefix = (case.amount / 1e9, "G") if case.unit != "image" else (case.amount, "")
    return f"{amount / timing.median:.2f} {prefix}{case.unit}/s"


def run(room: str, cases: Iterable[Case], options: argparse.Namespace) -> None:
    """Race the cases of a room, print them, and append them to its results file where asked to.

    Args:
        options: what `blip_fast.cli.bench.add_options` parses.
    """
    from bench import record

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    setup = record.Setup.of(room, options)
    made = made_on(torch.device(options.device), cases)
    rows = ((case, race(case, options.seconds, cold=options.cold or None)) for case in made)
    if options.save:
        rows = setup.saved(rows, Path(__file__).parent / "results")
    if options.json:
        for case, timings in rows:
            setup.print_json(case, timings)
        return
    print(setup.heading)
    print_table(rows)


def made_on(device: torch.device, cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, their tensors made on `device`: a case only calls torch's factories."""
    iterator = iter(cases)
    while True:
        torch.manual_seed(0)
        with device:
            case = next(iterator, None)
        if case is None:
            return
        yield case


def main(cases: Iterable[Case]) -> None:
    """Race the cases of the room whose bench runs as a script: `python -m bench.bench_<room>`."""
    from blip_fast.cli.bench import add_options

    room = Path(sys.argv[0]).stem.removeprefix("bench_")
    parser = argparse.ArgumentParser(prog=f"python -m bench.bench_{room}")
    add_options(parser)
    try:
        run(room, cases, parser.parse_args())
    except WrongResult as error:
        sys.exit(str(error))
