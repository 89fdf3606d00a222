"""What a tar shard holds and where, told from its headers, and everything that is wrong with it.

A sample is files that share a key, all of a name up to the first dot of its last part. They lie
beside each other, as webdataset and img2dataset write them. Other readers take a damaged header, or
a block of zeros as a crash leaves it, for the end of the archive, and lose the rest without a
word. This one finds the next header and goes on, and lists what it met.

Keys are data. One that is used as a file's name must be checked first: it may be `../../x` or
`/etc/x`. Nothing is unpacked here, and links are not followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blip_fast.data.tarheader import BLOCK, Header, TarFault, find_header, read_header

_PART = 2**20  # bytes read at a time where only zeros are expected


@dataclass(frozen=True)
class Damage:
    """Something wrong with an archive.

    Attributes:
        offset: of the first byte concerned.
        what: in words.
    """

    offset: int
    what: str

    def __str__(self) -> str:
        return f"at byte {self.offset}: {self.what}"


@dataclass(frozen=True)
class TarSample:
    """Files that share a key.

    Attributes:
        files: for each suffix, in lower case and without its first dot, offset and size in bytes
            of its content. Where a suffix is there twice, the first file.
    """

    key: str
    files: dict[str, tuple[int, int]]


@dataclass
class TarIndex:
    """Everything that can be read of an archive, and all that is wrong with it."""

    samples: list[TarSample] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)


def scan(archive: str | Path | int) -> TarIndex:
    """Read the headers of an archive, once, and nothing of its contents.

    A file that is cut short is left out, and its sample keeps the others. Files of one key that do
    not lie beside each other make one sample all the same. Folders, and files whose name begins
    with a dot, are passed over.

    Args:
        archive: a path, or the descriptor of an open file, whose position does not matter.

    Raises:
        OSError: where it cannot be read.
    """
    if isinstance(archive, int):
        return _scan(archive)
    file = os.open(archive, os.O_RDONLY)
    try:
        return _scan(file)
    finally:
        os.close(file)


def read_exactly(file: int, offset: int, size: int) -> bytes:
    """Bytes of a file by its descriptor; safe in several threads at a time.

    Raises:
        ValueError: where the file has become shorter.
    """
    parts = []
    while size > 0 and (part := os.pread(file, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    if size:
        raise ValueError(f"the archive ends at byte {offset}, {size} bytes early")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _scan(file: int) -> TarIndex:
    index = TarIndex()
    samples: dict[str, TarSample] = {}
    last = ""
    for header in _files(file, index.damages):
        folder, _, base = header.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem and dot:
            continue
        if not dot:
            index.damages.append(_of(header, "has no suffix, so it is part of no sample"))
            continue
        key = header.name[: len(header.name) - len(suffix) - 1]
        sample = samples.get(key)
        if sample is None:
            sample = samples[key] = TarSample(key, {})
            index.samples.append(sample)
        elif key != last:
            index.damages.append(_of(header, "does not lie beside the other files of its key"))
        last = key
        if suffix.lower() in sample.files:
            index.damages.append(_of(header, "is there a second time; the first is used"))
        else:
            sample.files[suffix.lower()] = (header.data, header.size)
    return index


def _of(header: Header, what: str) -> Damage:
    return Damage(header.offset, f"{header.name!r} {what}")


def _files(file: int, damages: list[Damage]) -> Iterator[Header]:
    """The regular files of an archive that are whole."""
    for header in _members(file, damages):
        if not header.kind:
            yield header
        elif header.kind != "a folder":
            damages.append(_of(header, f"is {header.kind}, which is left out"))


def _members(file: int, damages: list[Damage]) -> Iterator[Header]:
    """All members that are whole, in order. Each is held back until the next one is found."""
    end = os.fstat(file).st_size
    at, held = 0, None
    while at < end:
        zeros = _zeros(file, at, end)
        if zeros and at + zeros == end:
            if zeros < 2 * BLOCK:
                damages.append(Damage(at, f"the end mark has {zeros} bytes, of 1024; it was cut"))
            break
        header, problem = None, f"{zeros} bytes of zeros in the middle"
        if zeros < BLOCK:
            try:
                header = read_header(file, at, end)
            except TarFault as fault:
                problem = str(fault)
        if header is not None and held is not None:
            yield held
            held = None
        if header is not None and header.data + header.size <= end:
            at, held = header.next, header
            continue
        if header is not None:
            problem = f"{header.name!r} is cut: {end - header.data} of {header.size} bytes are left"
        found = _after_fault(file, at, end, held, header)
        if held is not None and found is not None and found < at:
            damages.append(_of(held, f"lacks bytes: the next header is at byte {found}"))
            held = None
        else:
            more = "nothing can be read after it" if found is None else f"going on at byte {found}"
            damages.append(Damage(at, f"{problem}; {more}"))
        if found is None:
            break
        at = found
    else:
        damages.append(Damage(end, "the end mark is missing, so files may be missing, too"))
    if held is not None:
        yield held


def _after_fault(
    file: int, at: int, end: int, held: Header | None, header: Header | None
) -> int | None:
    """Where the next sound header is, when the one at a place is not to be used."""
    if header is not None:  # sound, but of a file that is longer than what is left
        return find_header(file, header.data, end)
    if held is not None:  # it may have lost bytes, so that the next header lies inside of it
        inside = find_header(file, held.data, at)
        if inside is not None:
            return inside
    return find_header(file, at + 1, end)


def _zeros(file: int, at: int, end: int) -> int:
    """How many zero bytes lie at a place; 0 where a byte of its first block is not zero."""
    block = os.pread(file, BLOCK, at)
    if block.strip(b"\0"):
        return 0
    begin = at
    while at < end:
        part = os.pread(file, _PART, at)
        rest = part.lstrip(b"\0")
        at += len(part) - len(rest)
        if rest or not part:
            break
    return at - begin
