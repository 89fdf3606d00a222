"""Parquet tables: every way in which pictures and texts stand in columns."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_fast.data.parquet import ParquetSource
from blip_fast.data.samples import BadSample, Sample
from blip_fast.images import Status


def write(path: Path, rows_in_group: int = 100, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


def samples(source: ParquetSource) -> list[Sample]:
    return [
        source.open(shard)[number]
        for shard, count in enumerate(source.counts)
        for number in range(count)
    ]


def test_struct_of_bytes_and_path(tmp_path: Path) -> None:
    """As Hugging Face writes an image: either of the two may be null."""
    images = [
        {"bytes": b"one", "path": "1.jpg"},
        {"bytes": None, "path": "2.jpg"},
        {"bytes": b"three", "path": None},
        {"bytes": None, "path": None},
    ]
    path = write(tmp_path / "t.parquet", image=images, text=["a", "b", "c", "d"])
    shard = ParquetSource(path).open(0)
    assert [shard[n].images for n in range(3)] == [(b"one",), (tmp_path / "2.jpg",), (b"three",)]
    assert shard[1].image_id == str(tmp_path / "2.jpg")
    assert shard[0].image_id != shard[2].image_id
    with pytest.raises(BadSample, match=r"t.parquet, row group 0, row 3: the picture is null"):
        shard[3]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_column_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "t.parquet", jpg=pa.array([b"x", None], kind), caption=["a", "b"])
    shard = ParquetSource(path).open(0)
    assert shard[0].images == (b"x",)
    with pytest.raises(BadSample, match="the picture is null"):
        shard[1]


def test_paths_and_urls(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", URL=["https://x.org/1.jpg", "2.jpg"], TEXT=["a", "b"])
    assert [s.images for s in samples(ParquetSource(path))] == [
        ("https://x.org/1.jpg",),
        (tmp_path / "2.jpg",),
    ]
    assert samples(ParquetSource(path, "/photos"))[1].images == (Path("/photos/2.jpg"),)


def test_texts_and_ids(tmp_path: Path) -> None:
    columns = {
        "image": [b"x"] * 3,
        "caption": ["of caption", None, " \n"],
        "TEXT": ["of TEXT"] * 3,
        "image_id": [7, 8, None],
    }
    shard = ParquetSource(write(tmp_path / "t.parquet", **columns)).open(0)
    assert (shard[0].text, shard[0].image_id) == ("of caption", "7")
    with pytest.raises(BadSample, match="row 1: the text is null"):
        shard[1]
    with pytest.raises(BadSample, match="row 2: the text is empty") as raised:
        shard[2]
    assert raised.value.status is Status.EMPTY_TEXT
    with pytest.raises(IndexError):
        shard[3]


def test_a_shard_is_a_row_group(tmp_path: Path) -> None:
    for name, count in (("a", 7), ("b", 3), ("empty", 0)):
        texts = pa.array([f"{name}{n}" for n in range(count)], pa.string())
        images = pa.array([b"x"] * count, pa.binary())
        write(tmp_path / f"{name}.parquet", 3, image=images, text=texts)
    source = ParquetSource(tmp_path)
    assert [count for count in source.counts if count] == [3, 3, 1, 3]
    found = samples(source)
    assert [s.text for s in found] == [f"a{n}" for n in range(7)] + [f"b{n}" for n in range(3)]
    assert len({s.key for s in found}) == len({s.image_id for s in found}) == 10


def test_columns_are_checked_by_name(tmp_path: Path) -> None:
    for columns, message in (
        ({"picture": [b"x"], "text": ["a"]}, "t.parquet has no column of pictures: looked for im"),
        ({"image": [b"x"], "label": [1]}, "has no column of texts: .*found image, label"),
        ({"image": [1.5], "text": ["a"]}, "the column image holds double; pictures are bytes"),
        ({"image": [b"x"], "caption": [["a"]]}, "the column caption holds list<.*>, not texts"),
    ):
        path = write(tmp_path / "t.parquet", **columns)
        with pytest.raises(ValueError, match=message):
            ParquetSource(path).counts  # noqa: B018


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", image=[b"x"], text=["a"])
    whole = path.read_bytes()
    for data in (b"", whole[:-20], b"not parquet at all"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="t.parquet: "):
            ParquetSource(path).counts  # noqa: B018
    with pytest.raises(FileNotFoundError):
        ParquetSource(tmp_path / "gone.parquet").counts  # noqa: B018


def test_files_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", image=[b"x", b"y"], text=["a", "b"])
    files = fsspec.filesystem("memory")
    files.pipe_file("/tables/0.parquet", path.read_bytes())
    source = ParquetSource("memory://tables/{0..0}.parquet")
    assert [s.images for s in samples(source)] == [(b"x",), (b"y",)]
    files.rm("/tables", recursive=True)


def test_threads_share_a_shard(tmp_path: Path) -> None:
    images = [b"%d" % n * 50 for n in range(200)]
    texts = [str(n) for n in range(200)]
    shard = ParquetSource(write(tmp_path / "t.parquet", 200, image=images, text=texts)).open(0)
    wrong: list[int] = []

    def read() -> None:
        for n in range(200):
            if shard[n].images != (images[n],) or shard[n].text != texts[n]:
                wrong.append(n)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
