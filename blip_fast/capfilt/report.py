"""The page that shows a CapFilt run: one HTML file that asks no other machine for anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blip_fast.capfilt.rows import SOURCES, Candidate, Row
from blip_fast.data.pages import data_uri, page_template
from blip_fast.images import ImageOptions, Picture, Status, read_pictures

_THUMBNAIL = (
    224  # pixels of the longer side; a JPEG of about 7 kB, so that 200 pictures make a page of 2 MB
)
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


def render_report(rows: Sequence[Row], stats: dict[str, Any], image_options: ImageOptions) -> str:
    """The page as text; every text in it that came from outside is escaped.

    Args:
        stats: as in `CapFiltSummary`.
        image_options: how pictures are read for their thumbnails; its size does not matter.
    """
    failures = list(_failures(rows))
    shown = _spread(rows, stats["settings"]["gallery"])
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        stats=stats,
        untrained=sorted({m["source"] for m in stats["models"].values() if not m["trained"]}),
        bars=_histogram(rows),
        plot=(_PLOT_WIDTH, _PLOT_HEIGHT),
        cards=_cards(shown, image_options),
        failures=failures[:_FAILURES_SHOWN],
        failures_left=max(0, len(failures) - _FAILURES_SHOWN),
        shorten=_shorten,
    )


def _spread(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` rows, evenly spread."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _cards(rows: Sequence[Row], image_options: ImageOptions) -> list[Card]:
    readable = [row for row in rows if row.status is Status.SUCCESS]
    options = replace(image_options, size=_THUMBNAIL)
    pictures = read_pictures([row.path for row in readable], options)
    thumbnails = {
        id(row): _data_uri(picture) for row, picture in zip(readable, pictures, strict=True)
    }
    return [
        Card(
            row=row,
            thumbnail=thumbnails.get(id(row), ""),
            width=round(_HEIGHT_ON_PAGE * _ratio(row)),
            state=" ".join(sorted(_states(row))),
            texts=[(candidate, _state(candidate)) for candidate in row.candidates],
        )
        for row in rows
    ]


def _data_uri(picture: Picture) -> str:
    """A thumbnail as an address that holds the picture itself; empty where it is gone by now."""
    if picture.pixels is None:
        return ""
    ratio = _ratio(picture)  # pictures are read as squares; here they get their shape back
    size = (round(_THUMBNAIL * min(ratio, 1)), round(_THUMBNAIL / max(ratio, 1)))
    return data_uri(picture.pixels, size)


def _ratio(picture: Row | Picture) -> float:
    """Width by height, within limits: a panorama keeps some height."""
    if not picture.width or not picture.height:
        return 1.0
    return min(max(picture.width / picture.height, 0.2), 5.0)


def _state(candidate: Candidate) -> str:
    if candidate.status is not Status.SUCCESS:
        return "failed"
    return "kept" if candidate.kept else "rejected"


def _states(row: Row) -> set[str]:
    if row.status is not Status.SUCCESS:
        return {"failed"}
    return {_state(candidate) for candidate in row.candidates}


def _failures(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Status, key and reason of whatever did not go well: pictures and single texts."""
    for row in rows:
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


def _histogram(rows: Sequence[Row]) -> list[Bar]:
    """How many web and synthetic texts have which ITM probability, side by side."""
    counts = {source: [0] * _BINS for source in SOURCES}
    for row in rows:
        for candidate in row.candidates:
            if candidate.itm_probability is not None:
                place = min(int(candidate.itm_probability * _BINS), _BINS - 1)
                counts[candidate.source][place] += 1
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
