"""Tar shards made for tests, and what can be read of them."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from blip_fast.data.tar import read_exactly, scan

BLOCK = 512
COUNT = 20


def content(name: str) -> bytes:
    return (name.encode("utf-8", "surrogateescape") + b" ") * (40 if name.endswith(".jpg") else 2)


def archive(path: Path, names: Iterable[str], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content(name))
            tar.addfile(info, io.BytesIO(content(name)))
    return path


def keys(count: int = COUNT) -> list[str]:
    return [f"{n:05}" for n in range(count)]


def twenty(folder: Path) -> Path:
    """A shard of twenty samples, each a jpg and a txt."""
    names = [f"{key}.{suffix}" for key in keys() for suffix in ("jpg", "txt")]
    return archive(folder / "00000.tar", names)


def header_of(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def data_of(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset_data


def change(path: Path, at: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def complete(path: Path) -> list[str]:
    """Keys of samples whose two files are there, each file's content checked."""
    found = []
    file = os.open(path, os.O_RDONLY)
    for sample in scan(path).samples:
        for suffix, (offset, size) in sample.files.items():
            name = f"{sample.key}.{suffix}"
            assert read_exactly(file, offset, size) == content(name), name
        if {"jpg", "txt"} <= set(sample.files):
            found.append(sample.key)
    os.close(file)
    return found


def damages(path: Path) -> list[str]:
    return [str(damage) for damage in scan(path).damages]
