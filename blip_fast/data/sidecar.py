"""Sidecars: the text `NAME.txt` or `NAME.caption` beside a picture `NAME.jpg`.

Always UTF-8, whatever the locale, with a newline at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from blip_fast.data.files import displayable, replacing

# In order of preference where a picture has both.
EXTENSIONS = (".txt", ".caption")

Existing = Literal["skip", "overwrite", "append", "prepend"]
EXISTING: tuple[Existing, ...] = ("skip", "overwrite", "append", "prepend")

_BETWEEN_TEXTS = ", "  # as between the tags that image-model trainers read from these files


def find_sidecar(picture: Path) -> Path | None:
    """The sidecar of a picture, None where there is none."""
    candidates = (picture.with_suffix(extension) for extension in EXTENSIONS)
    return next((path for path in candidates if path.is_file()), None)


def read_sidecar(path: Path) -> str:
    """The text of a sidecar without surrounding white space; a byte order mark is left out.

    Raises:
        ValueError: where the file is not UTF-8.
        OSError: where it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{displayable(path)} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error


def write_sidecar(path: Path, text: str) -> None:
    """Write a text, a newline after it, in one step: a reader sees the old file or the new one."""
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes((text + "\n").encode("utf-8"))


def combine(old: str, new: str, existing: Existing) -> str:
    """The text to write where a sidecar already says `old`; empty old texts count as none."""
    if not old or existing == "overwrite":
        return new
    if existing == "append":
        return old + _BETWEEN_TEXTS + new
    if existing == "prepend":
        return new + _BETWEEN_TEXTS + old
    return old


def refuse_clashes(targets: Iterable[tuple[Path, str]]) -> None:
    """Refuse to write one sidecar for two pictures.

    Args:
        targets: each sidecar to be written, with the name of its picture.

    Raises:
        ValueError: naming two pictures that would share a sidecar, such as a.jpg and a.png.
    """
    owners: dict[str, str] = {}
    for sidecar, picture in targets:
        owner = owners.setdefault(os.path.normcase(sidecar), picture)
        if owner != picture:
            raise ValueError(
                f"{owner} and {picture} would share the sidecar {displayable(sidecar)}; "
                "rename one of them, or use --json"
            )
