"""Tar shards, whole and damaged: nothing readable is lost, and nothing is lost in silence."""

from __future__ import annotations

import io
import os
import random
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from blip_fast.data.tar import TarIndex, read_exactly, scan

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


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Twenty samples of jpg and txt, and a map of where every header lies."""
    names = [f"{key}.{suffix}" for key in keys() for suffix in ("jpg", "txt")]
    return archive(tmp_path / "00000.tar", names)


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


def test_cut_in_the_middle_of_a_member(shard: Path) -> None:
    at = header_of(shard, "00012.jpg")
    data = data_of(shard, "00012.jpg")
    os.truncate(shard, data + 100)
    assert complete(shard) == keys(12)
    size = len(content("00012.jpg"))
    assert damages(shard) == [
        f"at byte {at}: '00012.jpg' is cut: 100 of {size} bytes are left; nothing can be read "
        "after it"
    ]


def test_cut_in_the_text_keeps_the_picture(shard: Path) -> None:
    os.truncate(shard, data_of(shard, "00012.txt") + 3)
    assert complete(shard) == keys(12)
    assert scan(shard).samples[12].files.keys() == {"jpg"}
    assert "'00012.txt' is cut: 3 of" in damages(shard)[0]


def test_cut_exactly_between_members(shard: Path) -> None:
    at = header_of(shard, "00008.jpg")
    os.truncate(shard, at)
    assert complete(shard) == keys(8)
    assert damages(shard) == [
        f"at byte {at}: the end mark is missing, so files may be missing, too"
    ]


@pytest.mark.parametrize("left", [1, 511])
def test_cut_in_a_header(shard: Path, left: int) -> None:
    at = header_of(shard, "00008.jpg")
    os.truncate(shard, at + left)
    assert complete(shard) == keys(8)
    [damage] = damages(shard)
    assert damage.startswith(f"at byte {at}: the last {left} bytes are no whole block")


def test_cut_in_the_end_mark(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + BLOCK * -(-last.size // BLOCK)
    os.truncate(shard, end + BLOCK)
    assert complete(shard) == keys()
    assert damages(shard) == [f"at byte {end}: the end mark has 512 bytes, of 1024; it was cut"]
    os.truncate(shard, last.offset_data + last.size)  # in the filling of the last file
    assert complete(shard) == keys()
    assert "the end mark is missing" in damages(shard)[0]


def test_an_overwritten_header_costs_one_file(shard: Path) -> None:
    at = header_of(shard, "00008.jpg")
    change(shard, at, os.urandom(BLOCK))
    assert complete(shard) == [key for key in keys() if key != "00008"]
    [damage] = damages(shard)
    assert damage.startswith(f"at byte {at}: the header is damaged")
    assert damage.endswith(f"going on at byte {header_of_next(at, '00008.jpg')}")


def header_of_next(at: int, name: str) -> int:
    return at + BLOCK + BLOCK * -(-len(content(name)) // BLOCK)


def test_a_flipped_bit_in_a_header(shard: Path) -> None:
    at = header_of(shard, "00000.jpg")
    change(shard, at + 130, bytes([shard.read_bytes()[at + 130] ^ 1]))  # of its size
    assert complete(shard) == keys()[1:]
    assert scan(shard).samples[0].files.keys() == {"txt"}
    assert "its checksum is wrong" in damages(shard)[0]


def test_a_zeroed_header(shard: Path) -> None:
    at = header_of(shard, "00008.jpg")
    change(shard, at, bytes(BLOCK))
    assert complete(shard) == [key for key in keys() if key != "00008"]
    [damage] = damages(shard)
    assert damage.startswith(f"at byte {at}: 512 bytes of zeros in the middle; going on at byte")


def test_zeros_over_several_members(shard: Path) -> None:
    """As a crash leaves it: a page that was never written. Here the end mark's size and more."""
    at, stop = header_of(shard, "00008.txt"), header_of(shard, "00011.jpg") + 100
    change(shard, at, bytes(stop - at))
    assert complete(shard) == keys(8) + keys()[12:]
    assert damages(shard)[0].startswith(f"at byte {at}: {stop - at} bytes of zeros in the middle")


def test_a_zeroed_block_inside_a_file_is_the_decoders_to_find(shard: Path) -> None:
    change(shard, data_of(shard, "00008.jpg"), bytes(100))
    assert len(scan(shard).samples) == COUNT and scan(shard).damages == []


@pytest.mark.parametrize("missing", [512, 100])
def test_missing_bytes_cost_the_file_they_were_of(shard: Path, missing: int) -> None:
    """What follows is found, also where it no longer lies at a multiple of 512."""
    at = data_of(shard, "00008.jpg")
    data = shard.read_bytes()
    shard.write_bytes(data[:at] + data[at + missing :])
    assert complete(shard) == [key for key in keys() if key != "00008"]
    assert scan(shard).samples[8].files.keys() == {"txt"}
    [damage] = damages(shard)
    assert damage.startswith(f"at byte {at - BLOCK}: '00008.jpg' lacks bytes: the next header is")


def test_missing_bytes_with_a_header_among_them(shard: Path) -> None:
    """Whether the file before it is whole cannot be told then; its decoder will."""
    at, data = data_of(shard, "00008.jpg"), shard.read_bytes()
    shard.write_bytes(data[:at] + data[at + 700 :])
    index = scan(shard)
    assert [s.key for s in index.samples if len(s.files) == 2] == [
        k for k in keys() if k != "00008"
    ]
    assert index.samples[9].files["jpg"][0] == data_of_next(index.samples[8].files["jpg"][0])
    assert len(index.damages) == 1


def data_of_next(at: int) -> int:
    """From the jpg's data over its block, and a text's header and block, to the next header's."""
    return at + 4 * BLOCK - 700


def test_added_bytes_cost_nothing_but_a_word(shard: Path) -> None:
    at = header_of(shard, "00008.jpg")
    data = shard.read_bytes()
    shard.write_bytes(data[:at] + b"x" * 77 + data[at:])
    assert complete(shard) == keys()
    [damage] = damages(shard)
    assert damage.startswith(f"at byte {at}: ") and damage.endswith(f"going on at byte {at + 77}")


def test_two_archives_in_one_file(shard: Path) -> None:
    other = archive(shard.with_name("1.tar"), ["x.jpg", "x.txt"])
    shard.write_bytes(shard.read_bytes() + other.read_bytes())
    assert complete(shard) == [*keys(), "x"]
    assert "bytes of zeros in the middle" in damages(shard)[0]


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


@pytest.mark.parametrize("name", ["pax", "gnu"])
def test_damaged_extensions_cost_one_file(tmp_path: Path, name: str) -> None:
    """A record that claims gigabytes, one that is not as it should be, and one that is cut."""
    format = tarfile.PAX_FORMAT if name == "pax" else tarfile.GNU_FORMAT
    long = "l" * 150 + ".jpg"
    path = archive(tmp_path / "x.tar", ["a.jpg", long, "b.jpg"], format)
    whole, at = path.read_bytes(), header_of(path, long)
    assert len(scan(path).samples) == 3
    claims = tarfile.TarInfo("././@LongLink")
    claims.size, claims.type = 2**33, b"x" if name == "pax" else b"L"
    change(path, at, claims.tobuf(tarfile.GNU_FORMAT))
    assert {"a", "b"} <= {s.key for s in scan(path).samples}
    assert "a long name or pax record of 8589934592 bytes" in damages(path)[0]
    path.write_bytes(whole[: at + BLOCK + 10])
    assert [s.key for s in scan(path).samples] == ["a"] and len(damages(path)) == 1
    if name == "pax":
        path.write_bytes(whole)
        change(path, at + BLOCK, b"9x")
        assert {"a", "b"} <= {s.key for s in scan(path).samples}
        assert "a pax record is damaged" in damages(path)[0]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff" * 1000, b"ustar" * 5000, bytes(100)])
def test_what_is_no_archive_says_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    assert scan(path).samples == [] and len(scan(path).damages) == 1


def test_an_empty_archive_is_whole(tmp_path: Path) -> None:
    assert scan(archive(tmp_path / "x.tar", [])) == TarIndex()


def test_random_damage_never_fails_and_never_costs_much(shard: Path) -> None:
    """300 times 64 bytes anywhere: at most two samples, and contents that are still right."""
    whole, chance = shard.read_bytes(), random.Random(0)
    for _ in range(300):
        at = chance.randrange(len(whole))
        data = bytearray(whole)
        data[at : at + 64] = chance.randbytes(64)
        shard.write_bytes(data)
        index = scan(shard)
        good = [s for s in index.samples if {"jpg", "txt"} <= set(s.files)]
        assert len(good) >= COUNT - 2
        assert len(good) == COUNT or index.damages
        for sample in good:
            for offset, size in sample.files.values():
                assert offset + size <= len(whole)


def test_random_cuts_are_always_noticed(shard: Path) -> None:
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        ends = [m.offset_data + BLOCK * -(-m.size // BLOCK) for m in tar.getmembers()]
    for at in range(1, ends[-1] + 1024, 333):
        shard.write_bytes(whole[:at])
        index = scan(shard)
        assert len(index.damages) == 1, at
        # a file is there when its last byte is; the filling after it may be missing
        assert sum(len(s.files) for s in index.samples) >= sum(end <= at for end in ends)


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
