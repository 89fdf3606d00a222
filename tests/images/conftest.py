"""Makers of image files that no library would write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def blank_png() -> Callable[[int, int], bytes]:
    """A PNG of any size, all clear or all black, made row by row: a few hundred kB at most."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def make(width: int, height: int, clear: bool = True) -> bytes:
        packer, row = zlib.compressobj(1), bytes(1 + (4 if clear else 3) * width)
        packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        header = struct.pack(">IIBBBBB", width, height, 8, 6 if clear else 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)

    return make
