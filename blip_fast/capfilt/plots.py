"""Scores and shares as coordinates of plots, which the page scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blip_fast.capfilt.count import GRID, RANGES, Totals
from blip_fast.capfilt.rows import SOURCES
from blip_fast.capfilt.tune import Curve

WIDTH, HEIGHT = 400.0, 120.0
_BARS = 40  # of a histogram, at most
_NAMES = {"itm": "ITM probability", "itc": "ITC cosine"}


@dataclass(frozen=True)
class Bar:
    """One bin: where it lies, and how high all its texts and its kept ones reach."""

    x: float
    width: float
    before: float
    after: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """How many texts of a source have which score, before and after filtering.

    Attributes:
        threshold: where it lies, in the plot's coordinates; None where there is none.
        ticks: places and values.
    """

    source: str
    score: str
    count: int
    kept: int
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    threshold: float | None
    threshold_label: str


@dataclass(frozen=True)
class Line:
    """A share by threshold: what it is called in style sheets and for people, and its points."""

    kind: str
    name: str
    points: str
    values: list[float | None]


def histograms(
    totals: dict[str, Totals], thresholds: dict[str, float | None]
) -> list[tuple[str, list[Histogram]]]:
    """For each score that there is, its name and a histogram for each source."""
    found = []
    for score, name in _NAMES.items():
        counts = np.sum([totals[source].before[score] for source in SOURCES], axis=0)
        if counts.any():
            low, high = _span(counts, *RANGES[score]) if score == "itc" else RANGES[score]
            threshold = thresholds[score]
            of = [_histogram(totals[s], s, score, low, high, threshold) for s in SOURCES]
            found.append((name, of))
    return found


def lines(curve: Curve) -> list[Line]:
    """The shares kept of each source and, where there are labels, precision and recall."""
    found: list[tuple[str, str, Sequence[float | None]]] = []
    for source in SOURCES:
        if (kept := curve.kept[source]) is not None:
            found.append((source, f"{source} texts kept", kept))
    if curve.quality:
        found.append(("precision", "precision", [q.precision for q in curve.quality]))
        found.append(("recall", "recall", [q.recall for q in curve.quality]))
    return [Line(kind, name, _points(values), list(values)) for kind, name, values in found]


def _points(values: Sequence[float | None]) -> str:
    pairs = zip(GRID.tolist(), values, strict=True)
    return " ".join(f"{x * WIDTH:g},{(1 - y) * HEIGHT:.2f}" for x, y in pairs if y is not None)


def _span(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The part of a range, in tenths, outside of which nothing lies."""
    places = np.flatnonzero(counts)
    step = (high - low) / len(counts)
    first = np.floor((low + places[0] * step) * 10 + 1e-6) / 10
    last = np.ceil((low + (places[-1] + 1) * step) * 10 - 1e-6) / 10
    return float(max(low, first)), float(min(high, last))


def _histogram(
    totals: Totals, source: str, score: str, low: float, high: float, threshold: float | None
) -> Histogram:
    before, after = (
        _joined(fine[score], RANGES[score], low, high) for fine in (totals.before, totals.after)
    )
    highest, step = max(1, before.max()), WIDTH / len(before)
    part = (high - low) / len(before)
    bars = [
        Bar(
            x=round(i * step + 0.6, 2),
            width=round(step - 1.2, 2),
            before=round(HEIGHT * b / highest, 2),
            after=round(HEIGHT * a / highest, 2),
            label=f"{low + i * part:.3g} to {low + (i + 1) * part:.3g}: {b:,} {source}, {a:,} kept",
        )
        for i, (b, a) in enumerate(zip(before.tolist(), after.tolist(), strict=True))
        if b
    ]
    ticks = [(WIDTH * i / 4, f"{low + (high - low) * i / 4:.3g}") for i in range(5)]
    place = None
    if threshold is not None and low <= threshold <= high:
        place = WIDTH * (threshold - low) / (high - low)
    return Histogram(
        source=source,
        score=_NAMES[score],
        count=int(before.sum()),
        kept=int(after.sum()),
        bars=bars,
        ticks=ticks,
        threshold=place,
        threshold_label="" if threshold is None else f"{threshold:g}",
    )


def _joined(fine: np.ndarray, limits: tuple[float, float], low: float, high: float) -> np.ndarray:
    """Neighbouring bins of a part of the range, joined to at most 40."""
    scale = len(fine) / (limits[1] - limits[0])
    first, last = round((low - limits[0]) * scale), round((high - limits[0]) * scale)
    part = fine[first:last]
    size = max(1, -(-len(part) // _BARS))
    while len(part) % size:  # a range is in tenths, so some size near by divides it
        size += 1
    return part.reshape(-1, size).sum(1)
