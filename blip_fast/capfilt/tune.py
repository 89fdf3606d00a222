"""What another threshold would keep, told from a run's tables alone: no model, no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blip_fast.capfilt.columns import read_texts
from blip_fast.capfilt.count import GRID, Totals, count_texts, passes_itc, reaching
from blip_fast.capfilt.decide import Flag
from blip_fast.capfilt.labels import Judged, Labels, judge
from blip_fast.capfilt.rows import SOURCES, committed
from blip_fast.data.files import displayable


@dataclass(frozen=True)
class Quality:
    """How well a threshold tells true texts from false ones.

    Attributes:
        precision: of the labelled texts it keeps, the share that is true; None where it keeps
            none.
        recall: of the true labelled texts, the share it keeps; None where there are none.
    """

    precision: float | None
    recall: float | None

    @property
    def f1(self) -> float | None:
        if self.precision is None or self.recall is None:
            return None
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True)
class Curve:
    """What each threshold of `count.GRID` keeps.

    Attributes:
        rows: pictures of the run.
        totals: of each source, as the run decided.
        kept: of each source the share of its texts, for each threshold; None where it has none.
        labelled: labelled texts.
        quality: for each threshold, of all labelled texts together; empty where there are none.
    """

    rows: int
    totals: dict[str, Totals]
    kept: dict[str, list[float] | None]
    labelled: int
    quality: list[Quality]


def curve(
    folder: Path,
    labels: Labels | None = None,
    itc_threshold: float | None = None,
    without: Sequence[Flag] = ("degenerate",),
) -> Curve:
    """What the thresholds would keep of a run.

    Args:
        itc_threshold: least ITC cosine of a kept text, besides; none where it is None.
        without: flags of texts that are never kept.

    Raises:
        ValueError: where the folder holds no run, or no label is of one of its texts.
    """
    require_run(folder)
    rows, totals = count_texts(read_texts(folder, without=without), itc_threshold)
    judged = None if labels is None else judge(folder, labels, without)
    return make_curve(rows, totals, judged, itc_threshold)


def make_curve(
    rows: int, totals: dict[str, Totals], judged: Judged | None, itc_threshold: float | None
) -> Curve:
    """The same of what has been counted already."""
    return Curve(
        rows=rows,
        totals=totals,
        kept={source: _shares(totals[source]) for source in SOURCES},
        labelled=0 if judged is None else len(judged),
        quality=[] if judged is None else qualities(judged, GRID.tolist(), itc_threshold),
    )


def qualities(
    judged: Judged, thresholds: Sequence[float], itc_threshold: float | None = None
) -> list[Quality]:
    """The quality of each threshold."""
    able = judged.able & passes_itc(judged.itc, itc_threshold)
    at = np.asarray(thresholds)
    kept, right = (reaching(judged.itm[some], at) for some in (able, able & judged.true))
    true = int(judged.true.sum())
    return [
        Quality(r / k if k else None, r / true if true else None)
        for r, k in zip(right.tolist(), kept.tolist(), strict=True)
    ]


def require_run(folder: Path) -> None:
    """
    Raises:
        ValueError: where a folder holds no finished shard of a run.
    """
    if not folder.is_dir() or not committed(folder):
        raise ValueError(
            f"{displayable(folder)} holds no finished shard of CapFilt (NNNNN.parquet with "
            "NNNNN_stats.json); give the folder that `blip-fast capfilt --output` wrote"
        )


def _shares(totals: Totals) -> list[float] | None:
    return (totals.above / totals.count).tolist() if totals.count else None
