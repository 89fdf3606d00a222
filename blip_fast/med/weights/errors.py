"""The one error of reading and writing checkpoints, and how long lists are cut in its text."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 20


class WeightsError(ValueError):
    """A checkpoint that cannot be read, written, or trusted; the text says why and what to do."""


def listed(items: Iterable[str]) -> str:
    """The first 20 items on a line each, then how many more there are."""
    items = list(items)
    lines = [f"\n    {item}" for item in items[:_SHOWN]]
    if len(items) > _SHOWN:
        lines.append(f"\n    and {len(items) - _SHOWN} more")
    return "".join(lines)
