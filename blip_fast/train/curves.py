"""Numbers of a log as curves in SVG coordinates: raw and smoothed, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

# The plot's coordinates; the page scales them.
WIDTH, HEIGHT = 360.0, 150.0
MOST_POINTS = 240  # more would lie closer together than pixels do
_HALF_WINDOW = 8  # points on either side that a smoothed value is the mean of


@dataclass(frozen=True)
class Point:
    """A place on the plot where the pointer finds a value, `width` wide and all its height."""

    x: float
    width: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One plot.

    Attributes:
        name: what the page calls it.
        raw, smooth: `points` of SVG polylines; the same where nothing is smoothed.
        ticks: heights on the plot and their labels; of steps, places.
        first, last: the values at both ends, as text.
    """

    name: str
    raw: str
    smooth: str
    places: list[Point]
    ticks: list[tuple[float, str]]
    steps: list[tuple[float, str]]
    first: str
    last: str


def curve(
    name: str,
    steps: Sequence[int],
    values: Sequence[float],
    show: Callable[[float], str],
    noisy: bool = True,
) -> Curve:
    """The plot of a number over steps.

    Args:
        steps: rising, at least one.
        values: one for each of them, finite.
        show: a value as text.
        noisy: whether it has a smoothed curve too.
    """
    steps, values = _thinned(steps, values)
    smooth = smoothed(values) if noisy else values
    low, high, ticks = _ticks(min(values), max(values))
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return round((step - first) / (last - first) * WIDTH, 2)

    def y(value: float) -> float:
        return round((high - value) / (high - low) * HEIGHT, 2)

    def line(numbers: Sequence[float]) -> str:
        return " ".join(f"{x(s)},{y(v)}" for s, v in zip(steps, numbers, strict=True))

    width = WIDTH / max(1, len(steps) - 1)
    return Curve(
        name=name,
        raw=line(values),
        smooth=line(smooth),
        places=[
            Point(round(x(s) - width / 2, 2), round(width, 2), f"step {s:,}: {show(v)}")
            for s, v in zip(steps, values, strict=True)
        ],
        ticks=[(y(tick), show(tick)) for tick in ticks],
        steps=[(x(s), f"{s:,}") for s in dict.fromkeys((steps[0], steps[-1]))],
        first=show(smooth[0]),
        last=show(smooth[-1]),
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over windows around each value, so that a curve is neither late nor early.

    Towards the ends windows become narrower on both sides; the first and last value stay.
    """
    sums = [0.0, *accumulate(values)]
    means = []
    for place in range(len(values)):
        half = min(_HALF_WINDOW, len(values) // 8, place, len(values) - 1 - place)
        low, high = place - half, place + half + 1
        means.append((sums[high] - sums[low]) / (high - low))
    return means


def _thinned(
    steps: Sequence[int], values: Sequence[float]
) -> tuple[Sequence[int], Sequence[float]]:
    """At most `MOST_POINTS`: the means of neighbours, at the last of their steps."""
    size = -(-len(steps) // MOST_POINTS)
    if size == 1:
        return steps, values
    groups = [slice(i, i + size) for i in range(0, len(steps), size)]
    means = [sum(values[g]) / len(values[g]) for g in groups]
    return [steps[g][-1] for g in groups], means


def _ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round bounds around two values, and three to seven round numbers from one to the other."""
    # What hardly changes would have ticks that read alike.
    if high - low <= 2e-3 * max(abs(low), abs(high)):
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= rough * 0.999)
    bottom, top = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    ticks = [i * unit for i in range(bottom, top + 1)]
    return ticks[0], ticks[-1], ticks
