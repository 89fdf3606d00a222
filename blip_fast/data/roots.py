"""Where pictures lie that a manifest or table names by relative paths."""

from __future__ import annotations

from pathlib import Path

from blip_fast.data.folder import is_url


def below(root: str | Path, name: str) -> Path | str:
    """The path or URL of a picture; absolute paths and URLs stay what they are."""
    if is_url(name):
        return name
    return f"{str(root).rstrip('/')}/{name}" if is_url(root) else Path(root) / name
