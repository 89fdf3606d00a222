"""Whole tar shards in all formats, and what of them is a sample."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from pathlib import Path

import pytest
from tars import (
    BLOCK,
    COUNT,
    archive,
    complete,
    content,
    damages,
    keys,
    twenty,
)

from blip_fast.data.tar import TarIndex, read_exactly, scan


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return twenty(tmp_path)


def test_a_whole_shard(shard: Path) -> None:
    assert complete(shard) == keys()
    assert scan(shard).damages == []


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_and_long_names(tmp_path: Path, format: int) -> None:
    folder = "part/" * (12 if format == tarfile.USTAR_FORMAT else 60)
    names = [f"{folder}{key}.{s}" for key in ("a", "猫", "c d") for s in ("jpg", "txt")]
    path = archive(tmp_path / "x.tar", names, format)
    assert complete(path) == [folder + key for key in ("a", "猫", "c d")]
    assert damages(path) == []


def test_sizes_beyond_octal(tmp_path: Path) -> None:
    """9 GB in base 256, and in a pax record, in files that are holes."""
    size = 9 * 2**30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("big.jpg")
        info.size = size
        header = info.tobuf(format)
        path = tmp_path / "big.tar"
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size + 1024)
        index = scan(path)
        assert index.samples[0].files == {"jpg": (len(header), size)}
        assert index.damages == []


def test_keys_and_suffixes(tmp_path: Path) -> None:
    names = ["a/x.y/1.seg.PNG", "a/x.y/1.JPG", "./2.txt", "v1.0/3.json", "README", ".hidden.jpg"]
    index = scan(archive(tmp_path / "x.tar", names))
    assert [(s.key, list(s.files)) for s in index.samples] == [
        ("a/x.y/1", ["seg.png", "jpg"]),
        ("./2", ["txt"]),
        ("v1.0/3", ["json"]),
    ]
    assert [d.what for d in index.damages] == ["'README' has no suffix, so it is part of no sample"]


def test_interleaved_keys_make_whole_samples(tmp_path: Path) -> None:
    names = [f"{key}.{suffix}" for suffix in ("jpg", "txt") for key in keys()]
    path = archive(tmp_path / "x.tar", names)
    assert complete(path) == keys()
    assert len(damages(path)) == COUNT
    assert damages(path)[0].endswith("'00000.txt' does not lie beside the other files of its key")


def test_a_suffix_twice_keeps_the_first(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", ["a.jpg", "a.txt", "a.JPG", "b.jpg", "b.txt"])
    index = scan(path)
    assert index.samples[0].files["jpg"][0] == BLOCK
    assert complete(path) == ["a", "b"]
    assert damages(path)[0].endswith("'a.JPG' is there a second time; the first is used")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "is a symbolic link"),
        (tarfile.LNKTYPE, "is a hard link"),
        (tarfile.CHRTYPE, "is a device"),
        (tarfile.BLKTYPE, "is a device"),
        (tarfile.FIFOTYPE, "is a pipe"),
        (tarfile.GNUTYPE_SPARSE, "is a sparse file"),
        (b"?", "is of the unknown type"),
    ],
)
def test_what_is_no_file_is_left_out_and_named(tmp_path: Path, kind: bytes, what: str) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
        for name in ("b.jpg", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(content(name))
            tar.addfile(info, io.BytesIO(content(name)))
    assert complete(path) == ["b"]
    assert what in damages(path)[0] and "'a.jpg'" in damages(path)[0]


def test_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.txt").write_bytes(content("f/a.txt"))
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "f", "f")
    assert [s.key for s in scan(path).samples] == ["f/a"] and damages(path) == []


def test_hostile_names_are_nothing_but_keys(tmp_path: Path) -> None:
    names = ["../../evil.jpg", "/etc/x.jpg", "a\nb'\".txt", "caf\udce9.txt", "..txt"]
    index = scan(archive(tmp_path / "x.tar", names, tarfile.GNU_FORMAT))
    assert [s.key for s in index.samples] == ["../../evil", "/etc/x", "a\nb'\"", "caf\\xe9"]
    assert all(s.key.encode() for s in index.samples)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.tar"]


def test_an_empty_archive_is_whole(tmp_path: Path) -> None:
    assert scan(archive(tmp_path / "x.tar", [])) == TarIndex()


def test_threads_share_an_open_archive(shard: Path) -> None:
    file = os.open(shard, os.O_RDONLY)
    samples = scan(file).samples
    wrong: list[str] = []

    def read() -> None:
        for _ in range(50):
            for sample in samples:
                offset, size = sample.files["jpg"]
                if read_exactly(file, offset, size) != content(f"{sample.key}.jpg"):
                    wrong.append(sample.key)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    os.truncate(shard, 700)
    with pytest.raises(ValueError, match="the archive ends at byte 700"):
        read_exactly(file, 512, 400)
    os.close(file)


def test_whole_archives_are_read_as_webdataset_reads_them(shard: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    theirs = {s["__key__"]: s for s in webdataset.WebDataset(str(shard), shardshuffle=False)}
    ours = {s.key: s.files for s in scan(shard).samples}
    assert ours.keys() == theirs.keys()
    file = os.open(shard, os.O_RDONLY)
    for key, files in ours.items():
        for suffix, place in files.items():
            assert read_exactly(file, *place) == theirs[key][suffix]
    os.close(file)
