"""What a report and `tune` count of a run: texts by source, histograms, shares by threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from blip_fast.capfilt.columns import FLAGS, Texts
from blip_fast.capfilt.rows import SOURCES

GRID = np.arange(101) / 100  # thresholds at which shares are told
_FINE = 400  # bins a score is counted in; a plot joins some of them

# Least and highest of a score: a probability and a cosine.
RANGES = {"itm": (0.0, 1.0), "itc": (-1.0, 1.0)}


@dataclass(eq=False)
class Totals:
    """The texts of one source, "web" or "synthetic".

    Attributes:
        count, kept: texts.
        statuses: texts by status, as `rows.SCHEMA` has it.
        flags: texts by flag.
        before, after: int64 [400] for each of `RANGES`: how many texts, and how many kept ones,
            have a score in each part of its range.
        above: int64 [101], the texts that each threshold of `GRID` would keep.
    """

    count: int = 0
    kept: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    before: dict[str, np.ndarray] = field(default_factory=lambda: _empty())
    after: dict[str, np.ndarray] = field(default_factory=lambda: _empty())
    above: np.ndarray = field(default_factory=lambda: np.zeros(len(GRID), np.int64))

    def add(self, texts: Texts, chosen: np.ndarray, itc_threshold: float | None) -> None:
        """Count those of some texts that a mask, bool [N], chooses."""
        kept = chosen & texts.kept
        self.count += int(chosen.sum())
        self.kept += int(kept.sum())
        self.statuses.update(texts.status[chosen].tolist())
        for flag in FLAGS:
            self.flags[flag] += int((texts.flags[flag] & chosen).sum())
        for name, scores in (("itm", texts.itm), ("itc", texts.itc)):
            self.before[name] += _histogram(scores[chosen], RANGES[name])
            self.after[name] += _histogram(scores[kept], RANGES[name])
        able = chosen & texts.eligible & passes_itc(texts.itc, itc_threshold)
        self.above += reaching(texts.itm[able], GRID)


def count_texts(
    batches: Iterable[Texts], itc_threshold: float | None = None
) -> tuple[int, dict[str, Totals]]:
    """The number of rows, and the totals of each source.

    Args:
        itc_threshold: that the shares by ITM threshold presume.
    """
    rows = 0
    totals: dict[str, Totals] = {source: Totals() for source in SOURCES}
    for texts in batches:
        rows += texts.rows
        totals["web"].add(texts, texts.web, itc_threshold)
        totals["synthetic"].add(texts, ~texts.web, itc_threshold)
    return rows, totals


def passes_itc(itc: np.ndarray, threshold: float | None) -> np.ndarray:
    """bool [N]: whether cosines are at least a threshold; all are where there is none."""
    return np.ones(len(itc), bool) if threshold is None else itc >= threshold


def reaching(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """int64 [T]: how many scores are at least each of some thresholds."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def _empty() -> dict[str, np.ndarray]:
    return {name: np.zeros(_FINE, np.int64) for name in RANGES}


def _histogram(scores: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    place = ((scores[np.isfinite(scores)] - low) / (high - low) * _FINE).astype(np.int64)
    return np.bincount(place.clip(0, _FINE - 1), minlength=_FINE)
