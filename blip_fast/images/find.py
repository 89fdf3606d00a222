"""The images in a folder, by the ends of their names."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ico",
)  # fmt: skip


def find_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """All images under `folder`, in order of their paths.

    Nothing that looks like an image is passed over in silence: a folder or a broken link called
    x.jpg, and a folder that cannot be listed, are in the list, and reading them gives
    `failed_to_read` rows. Links to folders are followed, each folder once, so that loops end.
    Names that begin with a dot are hidden and skipped.

    Args:
        recursive: look into folders inside, too.

    Returns:
        paths that begin with `folder`; empty where there are none.

    Raises:
        ValueError: where `folder` is no folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"{os.fspath(folder)!r} is not a folder; give one that holds images")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    unlisted: list[Path] = []

    _mark(os.fspath(folder), seen)

    def keep_unlisted(error: OSError) -> None:
        unlisted.append(Path(error.filename))

    for parent, folders, files in os.walk(folder, onerror=keep_unlisted, followlinks=True):
        found += [Path(parent, name) for name in (*folders, *files) if _is_image(name)]
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        folders[:] = [n for n in folders if recursive and _mark(os.path.join(parent, n), seen)]
    return sorted({*found, *unlisted})


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _mark(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Note that a folder is being looked into; False where it was before, by whatever path."""
    found = os.stat(folder)
    identity = (found.st_dev, found.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True
