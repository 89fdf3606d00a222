"""Tar shards as a source: where they are found, how they are counted, what is lost to damage."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import fsspec
import pytest

from blip_fast.data import fetch
from blip_fast.data.samples import BadSample
from blip_fast.data.shardlist import expand_braces, list_shards
from blip_fast.data.tars import TarSource
from blip_fast.images import Status


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def pairs(count: int, first: int = 0) -> dict[str, bytes]:
    files = {}
    for n in range(first, first + count):
        files[f"{n:05}.jpg"] = b"picture %d" % n
        files[f"{n:05}.txt"] = b"text %d" % n
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard, count in enumerate((3, 0, 5)):
        (tmp_path / f"{shard:05}.tar").write_bytes(tar_bytes(pairs(count, 10 * shard)))
    return tmp_path


def texts(source: TarSource) -> list[str]:
    return [
        source.open(shard)[number].text
        for shard, count in enumerate(source.counts)
        for number in range(count)
    ]


def test_braces() -> None:
    assert expand_braces("{08..11}.tar") == ["08.tar", "09.tar", "10.tar", "11.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "b/0", "a/1", "b/1"]
    assert expand_braces("plain") == ["plain"]
    for wrong in ("{5..1}", "{0..9999999}"):
        with pytest.raises(ValueError, match="must run upwards"):
            expand_braces(wrong)


@pytest.mark.parametrize(
    ("spec", "shards"),
    [
        ("", [0, 1, 2]),
        ("/00002.tar", [2]),
        ("/{00000..00002}.tar", [0, 1, 2]),
        ("/*2.tar", [2]),
        ("/0000[01].tar", [0, 1]),
    ],
)
def test_shards_are_found(folder: Path, spec: str, shards: list[int]) -> None:
    (folder / "notes.txt").write_text("not a shard")
    expected = [f"{folder}/{shard:05}.tar" for shard in shards]
    assert list_shards(f"{folder}{spec}", ".tar") == expected
    assert list_shards(Path(f"{folder}{spec}"), ".tar") == expected


def test_joined_shards_and_chains(folder: Path) -> None:
    joined = f"{folder}/00002.tar::{folder}/{{00000..00001}}.tar"
    assert [s[-5] for s in list_shards(joined, ".tar")] == ["2", "0", "1"]
    chain = "simplecache::s3://bucket/{0..1}.tar::/local/2.tar"
    assert list_shards(chain, ".tar") == [
        "simplecache::s3://bucket/0.tar",
        "simplecache::s3://bucket/1.tar",
        "/local/2.tar",
    ]
    with pytest.raises(ValueError, match="00002.tar more than once"):
        list_shards(f"{folder}/00002.tar::{folder}", ".tar")
    (folder / "empty").mkdir()
    for nothing in (folder / "empty", folder / "x*.tar"):
        with pytest.raises(ValueError, match="no .tar shards there"):
            list_shards(nothing, ".tar")


def test_samples(folder: Path) -> None:
    source = TarSource(folder)
    assert list(source.counts) == [3, 0, 5]
    sample = source.open(2)[1]
    assert sample.images == (b"picture 21",) and sample.text == "text 21"
    assert sample.key == "00002.tar/00021"
    assert len({source.open(s)[n].image_id for s, c in enumerate((3, 0, 5)) for n in range(c)}) == 8
    with pytest.raises(IndexError):
        source.open(0)[3]


def test_counts_of_side_files_are_believed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "00000_stats.json").write_text(json.dumps({"count": 9, "successes": 4}))
    (folder / "sizes.json").write_text(json.dumps({"00000.tar": 7, "00002.tar": 2}))
    (folder / "00001_stats.json").write_text("{damaged")
    source = TarSource(folder)
    assert list(source.counts) == [4, 0, 2]
    shard = source.open(0)
    assert [shard[n].text for n in range(3)] == ["text 0", "text 1", "text 2"]
    with pytest.raises(BadSample, match="sample 3 is not there; 1 of 4 samples are lost"):
        shard[3]
    assert len(source.open(2)) == 2
    assert "5 samples, 3 more than counted" in caplog.text
    assert "00001_stats.json is left aside" in caplog.text


def test_only_shards_that_are_not_counted_are_opened(folder: Path) -> None:
    for shard, count in enumerate((3, 0, 5)):
        (folder / f"{shard:05}_stats.json").write_text(json.dumps({"successes": count}))
    source = TarSource(folder / "{00000..00002}.tar")
    for path in folder.glob("*.tar"):
        path.unlink()
    assert list(source.counts) == [3, 0, 5]
    with pytest.raises(FileNotFoundError):
        source.open(0)
    (folder / "00001_stats.json").unlink()
    with pytest.raises(FileNotFoundError, match="00001.tar"):
        TarSource(folder / "{00000..00002}.tar").counts  # noqa: B018


def test_damage_is_counted_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The shard of 100 samples that other readers end at sample 40, without a word."""
    path = folder / "00000.tar"
    files = pairs(100)
    path.write_bytes(tar_bytes(files))
    (folder / "00000_stats.json").write_text('{"successes": 100}')
    with tarfile.open(path) as tar:
        at = tar.getmember("00040.jpg").offset
    data = bytearray(path.read_bytes())
    data[at : at + 512] = bytes(512)
    path.write_bytes(data)
    shard = TarSource(path).open(0)
    assert len(shard) == 100
    good = {}
    for number in range(100):
        try:
            good[number] = shard[number].text
        except BadSample as error:
            assert number == 40 and "00040 has no picture" in str(error)
            assert f"at byte {at}: 512 bytes of zeros in the middle" in str(error)
    assert len(good) == 99
    assert f"at byte {at}" in caplog.text

    path.write_bytes(tar_bytes(files)[:at])
    caplog.clear()
    shard = TarSource(path).open(0)
    with pytest.raises(BadSample, match="the end mark is missing.*; 60 of 100 samples are lost"):
        shard[99]
    assert shard[39].text == "text 39"
    assert [r.levelno for r in caplog.records] == [logging.WARNING]


def test_suffixes_and_texts(tmp_path: Path) -> None:
    files = {
        "a.PNG": b"png", "a.jpeg": b"jpeg", "a.json": b'{"caption": "of json"}', "a.cls": b"1",
        "b.webp": b"webp", "b.json": b'{"caption": null, "text": "in text"}',
        "c.jpg": b"jpg", "c.txt": "\ufeff ein Hund 🐕".encode(), "c.json": b"{}",
        "d.jpg": b"jpg", "e.txt": b"no picture", "f.jpg": b"jpg", "f.txt": b" \n",
        "g.jpg": b"jpg", "g.txt": b"caf\xe9", "h.jpg": b"jpg", "h.json": b"{",
        "i.jpg": b"jpg", "i.json": b'{"url": "x"}', "j.jpg": b"jpg", "j.json": b"[]",
    }  # fmt: skip
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes(files))
    shard = TarSource(path).open(0)
    assert [(shard[n].images[0], shard[n].text) for n in range(3)] == [
        (b"jpeg", "of json"),
        (b"webp", "in text"),
        (b"jpg", " ein Hund 🐕"),
    ]
    for number, message in enumerate(
        ("d has no text", "e has no picture", "f: the text is empty", "g: the text: 'utf-8' codec",
         "h: the text: Expecting", "i: neither caption nor text", "j: neither caption nor text"),
        start=3,
    ):  # fmt: skip
        with pytest.raises(BadSample, match=message) as raised:
            shard[number]
        expected = Status.EMPTY_TEXT if number == 5 else Status.FAILED_TO_READ
        assert raised.value.status is expected


def test_a_file_closes_with_its_shard(folder: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    shards = [TarSource(folder).open(0) for _ in range(5)]
    assert open_files() == before + 5
    del shards
    assert open_files() == before


@pytest.fixture
def remote(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The same shards in fsspec's memory, and no pauses between attempts."""
    files = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        files.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    files.pipe_file("/bucket/00002_stats.json", b'{"successes": 6}')
    monkeypatch.setattr(fetch, "_PAUSES", (0.0, 0.0, 0.0))
    yield files
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize("prefix", ["", "simplecache::"])
def test_shards_elsewhere(remote, prefix: str, monkeypatch, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    source = TarSource(prefix + "memory://bucket/{00000..00002}.tar")
    assert list(source.counts) == [3, 0, 6]
    shard = source.open(2)
    assert shard[1].images == (b"picture 21",)
    assert len(os.listdir(copies)) == (1 if prefix else 0)  # a copy of ours has no name
    with pytest.raises(BadSample, match="1 of 6 samples are lost"):
        shard[5]
    with pytest.raises(FileNotFoundError):
        TarSource("memory://bucket/7.tar").counts  # noqa: B018


def test_patterns_elsewhere(remote) -> None:
    assert list_shards("memory://bucket/*[02].tar", ".tar") == [
        "memory:///bucket/00000.tar",
        "memory:///bucket/00002.tar",
    ]


def test_a_network_is_asked_again(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    get_file = type(remote).get_file

    def failing(self: object, *args: object, **kwargs: object) -> None:
        asked.append(args)
        if len(asked) < 4:
            raise ConnectionError("503 slow down")
        return get_file(self, *args, **kwargs)

    monkeypatch.setattr(type(remote), "get_file", failing)
    assert TarSource("memory://bucket/00000.tar").open(0)[0].text == "text 0"
    assert len(asked) >= 4
    monkeypatch.setattr(fetch, "_PAUSES", ())
    asked.clear()
    with pytest.raises(ConnectionError, match="503"):
        TarSource("memory://bucket/00002.tar").open(0)
