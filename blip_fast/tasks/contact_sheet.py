"""Search results as a page: one file, pictures included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip_fast.data.pages import data_uri, page_template
from blip_fast.images import ImageOptions, read_pictures
from blip_fast.tasks.search import Hit

_SIDE = 224


def contact_sheet(
    query: str, of: str, hits: Sequence[Hit], texts: bool, options: ImageOptions
) -> str:
    """The HTML page of a search.

    Args:
        of: whether the query is a "text" or an "image".
        texts: whether the hits are.
        options: how pictures are read; here they are shown square, as the model sees them.
    """
    own = _thumbnails([query], options)[0] if of == "image" else None
    shown: list[Any] = [(None, "")] * len(hits)
    if not texts:
        shown = _thumbnails([hit.name for hit in hits], options)
    cards = [
        {
            "name": hit.name,
            "short": hit.name if texts else Path(hit.name).name,
            "uri": uri,
            "error": error,
            "similarity": hit.similarity,
            "probability": hit.probability,
        }
        for hit, (uri, error) in zip(hits, shown, strict=True)
    ]
    template = page_template(Path(__file__).with_name("contact_sheet.html.j2"))
    return template.render(query=query, own=own, cards=cards, texts=texts, side=_SIDE)


def _thumbnails(sources: Sequence[str], options: ImageOptions) -> list[tuple[str | None, str]]:
    """An address for each picture, or none and why."""
    pictures = read_pictures(sources, replace(options, size=_SIDE))
    return [
        (None if p.pixels is None else data_uri(p.pixels, (_SIDE, _SIDE)), p.error)
        for p in pictures
    ]
