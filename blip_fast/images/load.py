"""Where an image's bytes come from: a path, a URL or memory, with a limit on their number."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from blip_fast.images.status import ImageError, Status, failing_as

# A path, a URL, encoded bytes, or an image in memory.
Source: TypeAlias = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor

# `s3://bucket/key`, and fsspec's chains such as `simplecache::s3://bucket/key`.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(://|::)")

_PAUSES = (0.5, 2.0)  # seconds between attempts at a URL; of the many of a web table, some are dead


def name_of(source: Source, number: int = 0) -> str:
    """What an image is called in messages: its path or URL, or "image 3" for one in memory.

    Args:
        number: the place of the image among its neighbours, counted from 0.
    """
    return os.fspath(source) if isinstance(source, (str, Path)) else f"image {number}"


def read_bytes(source: str | Path | bytes | bytearray | memoryview, max_bytes: int) -> bytes:
    """The encoded bytes of an image, at most `max_bytes` of them.

    A string with a scheme (`https://`, `s3://`, ...) is opened through fsspec, thrice where the
    network fails; every other string, and every Path, is a file of this machine.

    Raises:
        ImageError: `failed_to_read` with the reason, or `too_large`.
    """
    with failing_as(Status.FAILED_TO_READ):
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
        elif isinstance(source, str) and _URL.match(source):
            data = _read_url(source, max_bytes)
        elif isinstance(source, (str, Path)):
            data = _read_file(source, max_bytes)
        else:
            raise ImageError(
                Status.FAILED_TO_READ,
                f"a {type(source).__name__} is not an image; give a path, a URL, bytes, a PIL "
                "image, an array or a tensor",
            )
        if not data:
            raise ImageError(Status.FAILED_TO_READ, "it is empty")
        _check_bytes(len(data), max_bytes)
        return data


def _read_file(path: str | Path, max_bytes: int) -> bytes:
    found = os.stat(path)  # follows links; before opening, because opening a pipe waits
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise ImageError(Status.FAILED_TO_READ, f"{os.fspath(path)!r} is {kind}")
    _check_bytes(found.st_size, max_bytes)
    with open(path, "rb") as file:
        return _read_at_most(file, max_bytes)


def _read_url(url: str, max_bytes: int) -> bytes:
    import fsspec  # here, because few need it and it takes time to import

    from blip_fast.images.network import patiently

    def read() -> bytes:
        with fsspec.open(url, "rb") as file:
            return _read_at_most(file, max_bytes)

    try:
        return patiently(read, _PAUSES)
    except ImportError as error:
        raise ImageError(Status.FAILED_TO_READ, str(error)) from error


def _read_at_most(file: IO[Any], max_bytes: int) -> bytes:
    """All bytes, or one more than allowed: a size told beforehand need not be true."""
    parts: list[bytes] = []
    left = max_bytes + 1
    while left and (part := file.read(left)):  # a read from a network may give less than asked
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_bytes(number: int, max_bytes: int) -> None:
    if number > max_bytes:
        raise ImageError(
            Status.TOO_LARGE, f"{number} bytes or more are over the limit, max_bytes {max_bytes}"
        )
