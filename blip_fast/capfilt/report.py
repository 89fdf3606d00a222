"""The page that shows a CapFilt run: one HTML file that asks no other machine for anything."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_fast.capfilt.rows import SOURCES, Candidate, Row, Source
from blip_fast.data.pages import page_template
from blip_fast.images import Status

_HEIGHT_ON_PAGE = 300
_BINS = 20
_FAILURES_SHOWN = 500
_TEXT_SHOWN = 400  # characters

# The plot's coordinates; the page scales them.
_PLOT_WIDTH, _PLOT_HEIGHT = 400.0, 140.0


@dataclass(frozen=True)
class Card:
    """A picture in the gallery.

    `width` is that of the thumbnail on the page, in CSS pixels; `state` lists which of kept,
    rejected and failed the card shows.
    """

    row: Row
    thumbnail: str
    width: int
    state: str
    texts: list[tuple[Candidate, str]]


@dataclass(frozen=True)
class Bar:
    """One bin of the histogram for one source, in the plot's coordinates."""

    source: str
    x: float
    y: float
    width: float
    height: float
    label: str


def render_report(rows: Iterable[Row], stats: dict[str, Any]) -> str:
    """The page as text; every text in it that came from outside is escaped.

    Args:
        rows: gone through once. Those that have a thumbnail, even an empty one, are shown.
        stats: as in `CapFiltSummary`.
    """
    shown: list[Row] = []
    failures: list[tuple[str, str, str]] = []
    counts = {source: [0] * _BINS for source in SOURCES}
    for row in rows:
        if row.thumbnail is not None:
            shown.append(row)
        failures += _failures(row)
        del failures[_FAILURES_SHOWN + 1 :]
        _count(counts, row)
    left = stats["failures"] - _FAILURES_SHOWN if len(failures) > _FAILURES_SHOWN else 0
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        stats=stats,
        untrained=sorted({m["source"] for m in stats["models"].values() if not m["trained"]}),
        bars=_histogram(counts),
        plot=(_PLOT_WIDTH, _PLOT_HEIGHT),
        cards=[_card(row) for row in shown],
        failures=failures[:_FAILURES_SHOWN],
        failures_left=max(left, 0),
        shorten=_shorten,
    )


def _card(row: Row) -> Card:
    data = base64.b64encode(row.thumbnail or b"").decode("ascii")
    return Card(
        row=row,
        thumbnail=f"data:image/jpeg;base64,{data}" if data else "",
        width=round(_HEIGHT_ON_PAGE * _ratio(row)),
        state=" ".join(sorted(_states(row))),
        texts=[(candidate, _state(candidate)) for candidate in row.candidates],
    )


def _ratio(row: Row) -> float:
    """Width by height, within limits: a panorama keeps some height."""
    if not row.width or not row.height:
        return 1.0
    return min(max(row.width / row.height, 0.2), 5.0)


def _state(candidate: Candidate) -> str:
    if candidate.status is not Status.SUCCESS:
        return "failed"
    return "kept" if candidate.kept else "rejected"


def _states(row: Row) -> set[str]:
    if row.status is not Status.SUCCESS:
        return {"failed"}
    return {_state(candidate) for candidate in row.candidates}


def _failures(row: Row) -> Iterator[tuple[str, str, str]]:
    """Status, key and reason of whatever did not go well: the picture, and single texts."""
    if row.status is not Status.SUCCESS:
        yield row.status.value, row.key, row.error_message
    for candidate in row.candidates:
        if candidate.status is Status.EMPTY_TEXT:
            yield candidate.status.value, row.key, f"the {candidate.source} text is empty"
        elif candidate.status is Status.FAILED_SCORE:
            reason = f"the filter's score of the {candidate.source} text is not a number"
            yield candidate.status.value, row.key, reason
        elif candidate.status is not Status.SUCCESS:
            yield candidate.status.value, row.key, row.error_message


def _count(counts: dict[Source, list[int]], row: Row) -> None:
    for candidate in row.candidates:
        if candidate.itm_probability is not None:
            place = min(int(candidate.itm_probability * _BINS), _BINS - 1)
            counts[candidate.source][place] += 1


def _histogram(counts: dict[Source, list[int]]) -> list[Bar]:
    """How many web and synthetic texts have which ITM probability, side by side."""
    highest = max(max(values) for values in counts.values()) or 1
    step = _PLOT_WIDTH / _BINS
    width = step * 0.4
    return [
        Bar(
            source=source,
            x=round(place * step + step * 0.1 + offset * width, 2),
            y=round(_PLOT_HEIGHT * (1 - count / highest), 2),
            width=round(width, 2),
            height=round(_PLOT_HEIGHT * count / highest, 2),
            label=f"{place / _BINS:.2f} to {(place + 1) / _BINS:.2f}: {count} {source}",
        )
        for offset, source in enumerate(SOURCES)
        for place, count in enumerate(counts[source])
        if count
    ]


def _shorten(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[:_TEXT_SHOWN] + " …"
