"""Tar archives whose bytes depend on their members alone: no times, no owners."""

from __future__ import annotations

import tarfile
from types import TracebackType
from typing import BinaryIO

_BLOCK = 512


class TarWriter:
    """Writes members one after the other; a context manager that ends the archive.

    The end mark is two blocks of zeros, without the filling up to 10 kB of tape drives.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, name: str, data: bytes) -> None:
        """Write a member.

        Raises:
            ValueError: where the name does not fit into ustar's header (100 bytes and a prefix).
            OSError: where the disk takes no more.
        """
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        self._file.write(data)
        self._file.write(bytes(-len(data) % _BLOCK))

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is None:  # else it is no whole archive, and must not look like one
            self._file.write(bytes(2 * _BLOCK))
