"""One header of a tar archive: ustar, GNU's long names and large sizes, and pax records.

A header is taken when its checksum is right; a damaged one is a `TarFault`, never the end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

BLOCK = 512

_MAGIC, _MAGIC_AT = b"ustar", 257
_CHECKSUM = slice(148, 156)
_EXTENSIONS = b"LKxgX"  # headers that say more about the file that follows
_LONGEST_EXTENSION = 2**20  # bytes; one that claims more is damaged or hostile
_SEARCH = 2**20  # bytes read at a time

# What is no regular file: without content in the archive, whatever its size says.
_WITHOUT_CONTENT = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
}
_REGULAR = (b"0", b"\0", b"7")


class TarFault(ValueError):
    """There is no sound header at this place; the message says why."""


@dataclass(frozen=True)
class Header:
    """A member of an archive.

    Attributes:
        offset: where its header begins, or what comes before it to extend it.
        name: bytes that are not UTF-8 appear as `\\xE9`.
        kind: "" for a regular file, else what it is.
        data: where its content begins.
        size: of the content, in bytes.
    """

    offset: int
    name: str
    kind: str
    data: int
    size: int

    @property
    def next(self) -> int:
        """Where the next header begins: blocks are filled up with zeros."""
        return self.data + -(-self.size // BLOCK) * BLOCK


def read_header(file: int, offset: int, end: int) -> Header:
    """Read the header at a place, with those before it that give its long name or size.

    Args:
        file: the archive's descriptor.
        end: its size in bytes.

    Raises:
        TarFault: where it is damaged or cut.
    """
    at, long_name, long_size, sparse = offset, b"", -1, False
    while True:
        name, kind, size = _parse(os.pread(file, BLOCK, at))
        at += BLOCK
        if kind not in _EXTENSIONS:
            break
        if size > min(_LONGEST_EXTENSION, end - at):
            raise TarFault(f"a long name or pax record of {size} bytes")
        content = os.pread(file, size, at)
        at += -(-size // BLOCK) * BLOCK
        if kind == b"L":
            long_name = content.rstrip(b"\0")
        elif kind in b"xX":
            records = _pax_records(content)
            long_name = records.get(b"path", long_name)
            long_size = _decimal(records[b"size"]) if b"size" in records else long_size
            sparse = sparse or any(key.startswith(b"GNU.sparse") for key in records)
    text = (long_name or name).decode("utf-8", "backslashreplace")
    if kind in _WITHOUT_CONTENT:
        return Header(offset, text, _WITHOUT_CONTENT[kind], at, 0)
    size = long_size if long_size >= 0 else size
    if kind == b"S" or sparse:
        return Header(offset, text, "a sparse file", at, size)
    if kind not in _REGULAR:
        return Header(offset, text, f"of the unknown type {kind!r}", at, size)
    return Header(offset, text, "a folder" if text.endswith("/") else "", at, size)


def find_header(file: int, start: int, end: int) -> int | None:
    """The place of the first sound header that begins from `start` on and before `end`.

    It need not lie at a multiple of 512: bytes may be missing.
    """
    for at in range(start, end, _SEARCH):
        part = os.pread(file, _SEARCH + BLOCK, at)
        magic = part.find(_MAGIC, _MAGIC_AT)
        while 0 <= magic < _SEARCH + _MAGIC_AT and at + magic - _MAGIC_AT < end:
            begin = magic - _MAGIC_AT
            try:
                _parse(part[begin : begin + BLOCK])
                return at + begin
            except TarFault:
                magic = part.find(_MAGIC, magic + 1)
    return None


def _parse(block: bytes) -> tuple[bytes, bytes, int]:
    """Name, type and size that one block gives."""
    if len(block) < BLOCK:
        raise TarFault(f"the last {len(block)} bytes are not a whole block")
    field = block[_CHECKSUM]
    checksum = sum(block) - sum(field) + len(field) * ord(" ")
    stored = _number(field)
    if stored != checksum:
        # some old writers added bytes up as signed
        negative = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in field)
        if stored != checksum - 256 * negative:
            raise TarFault("the header is damaged: its checksum is wrong")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    if prefix and block[_MAGIC_AT:263] == b"ustar\0":
        name = prefix + b"/" + name
    return name, block[156:157], _number(block[124:136])


def _number(field: bytes) -> int:
    """Octal digits, or 256 to the power of as many bytes as follow a first 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits or digits.strip(b"01234567"):
        raise TarFault(f"the header is damaged: {field!r} is not a number")
    return int(digits, 8)


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """`length key=value` and a newline, one after the other; the length counts all of it."""
    records: dict[bytes, bytes] = {}
    while content.strip(b"\0"):
        length = _decimal(content.split(b" ", 1)[0])
        record, content = content[:length], content[length:]
        key, equals, value = record.partition(b" ")[2].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise TarFault("a pax record is damaged")
        records[key] = value[:-1]
    return records


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise TarFault("a pax record is damaged")
    return int(digits)
