"""Keeps Pillow's warnings about odd files off the terminal: a row's status says it already."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_lock = threading.Lock()
_inside = 0  # threads that are in the context now
_filter: tuple | None = None


@contextmanager
def pillow_is_quiet() -> Iterator[None]:
    """Ignore warnings from Pillow's modules while any thread is inside.

    `warnings.catch_warnings` belongs to the whole process: two threads that enter and leave it in
    turns undo each other's state. So the first one in adds one filter, and the last one out takes
    away that one and nothing else.
    """
    global _inside, _filter
    with _lock:
        if _inside == 0:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _filter = warnings.filters[0]
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                with suppress(ValueError):  # gone already where others have reset the filters
                    warnings.filters.remove(_filter)  # type: ignore[attr-defined]
