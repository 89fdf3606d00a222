"""Shards that lie elsewhere, copied whole for as long as they are open."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import TypeVar

from blip_fast.data.folder import is_url
from blip_fast.images import network

_PAUSES = (1.0, 4.0, 16.0)  # seconds between attempts

T = TypeVar("T")


def open_local(shard: str) -> int:
    """A descriptor of a shard's bytes on this machine, which the caller closes.

    A URL is copied to a file without a name, so that the disk is free again when it is closed, and
    a run over a thousand shards needs room for those it has open. Where the URL itself names one
    of fsspec's caches, as `filecache::s3://...`, copies are kept there instead.

    Raises:
        OSError: where it cannot be read, a network after four attempts.
    """
    if not is_url(shard):
        return os.open(shard, os.O_RDONLY)
    import fsspec  # here, because few need it and it takes time to import

    if "::" in shard:
        return os.open(patiently(lambda: fsspec.open_local(shard)), os.O_RDONLY)
    files, path = patiently(lambda: fsspec.url_to_fs(shard))
    file, name = tempfile.mkstemp(prefix="blip_fast-")
    try:
        patiently(lambda: files.get_file(path, name))
        # a new descriptor: the copy may have been written beside the first and moved over it
        return os.open(name, os.O_RDONLY)
    finally:
        os.close(file)
        os.unlink(name)


def read_small(path: str) -> bytes | None:
    """A small file beside shards, None where there is none."""
    try:
        if not is_url(path):
            with open(path, "rb") as file:
                return file.read()
        import fsspec

        with fsspec.open(path.rsplit("::", 1)[-1], "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def patiently(work: Callable[[], T]) -> T:
    """Do it again after a pause where a network fails it; a missing file stays missing.

    Raises:
        OSError: where the last attempt failed, too.
    """
    return network.patiently(work, _PAUSES)
