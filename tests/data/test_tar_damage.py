"""Damaged tar shards: nothing readable is lost, and nothing is lost in silence."""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

import pytest
from tars import (
    BLOCK,
    COUNT,
    archive,
    change,
    complete,
    content,
    damages,
    data_of,
    header_of,
    keys,
    twenty,
)

from blip_fast.data.tar import scan


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return twenty(tmp_path)


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
    assert damage.startswith(f"at byte {at}: the last {left} bytes are not a whole block")


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
