"""What is given decides how it is read; and the counting of sources that take turns."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip_fast.data import BadSample, open_in_turns, open_source
from blip_fast.data import open as open_module
from blip_fast.data.samples import Sample, Source
from blip_fast.images import Status


def samples(source: Source) -> list[Sample]:
    return [
        source.open(shard)[number]
        for shard, count in enumerate(source.counts)
        for number in range(count)
    ]


def write_tar(path: Path, text: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.jpg", b"jpg"), ("a.txt", text.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_parquet(path: Path, text: str) -> None:
    pq.write_table(pa.table({"image": [b"jpg"], "caption": [text]}), path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.png", "c.png", "d.png", "e.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "a.txt").write_text("a cat\n", encoding="utf-8")
    (folder / "deep" / "b.caption").write_text("a dog", encoding="utf-8")
    (folder / "d.txt").write_bytes(b"caf\xe9")
    (folder / "e.txt").write_text(" \n")
    return folder


def test_every_kind(tmp_path: Path, pictures: Path) -> None:
    row = {"image": "a.jpg", "caption": "of a manifest"}
    (tmp_path / "m.json").write_text(json.dumps([row]))
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tables").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", "of a tar")
    write_parquet(tmp_path / "tars" / "0.parquet", "of img2dataset's table")
    write_parquet(tmp_path / "tables" / "0.parquet", "of a table")
    for spec, text in (
        ("m.json", "of a manifest"),
        ("m.jsonl", "of a manifest"),
        ("tars", "of a tar"),
        ("tars/0.tar", "of a tar"),
        ("tars/{0..0}.tar", "of a tar"),
        ("tars/*.tar", "of a tar"),
        ("tables", "of a table"),
        ("tables/*.parquet", "of a table"),
    ):
        assert [s.text for s in samples(open_source(tmp_path / spec))] == [text], spec
        assert open_source(str(tmp_path / spec)).name == str(tmp_path / spec)


def test_image_root(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps([{"image": "a.jpg", "caption": "x"}]))
    [sample] = samples(open_source(tmp_path / "m.json", image_root=pictures))
    assert sample.images == (pictures / "a.jpg",)
    pq.write_table(pa.table({"path": ["a.jpg"], "text": ["x"]}), tmp_path / "t.parquet")
    [sample] = samples(open_source(tmp_path / "t.parquet", image_root=pictures))
    assert sample.images == (pictures / "a.jpg",)
    with pytest.raises(ValueError, match="a root for each dataset is for VQA"):
        open_source(tmp_path / "t.parquet", image_root={"vqa": "x"})
    with pytest.raises(ValueError, match="holds its pictures itself; leave image_root 'x' out"):
        open_source(pictures, image_root="x")


def test_a_folder_of_pictures_with_sidecars(pictures: Path) -> None:
    source = open_source(pictures)
    assert list(source.counts) == [5]
    shard = source.open(0)
    assert (shard[0].text, shard[0].images, shard[0].key) == (
        "a cat", (pictures / "a.jpg",), "a.jpg",
    )  # fmt: skip
    assert (shard[3].text, shard[3].key) == ("a dog", "deep/b.png")
    for number, status, message in (
        (1, Status.FAILED_TO_READ, "c.png has no .txt or .caption beside it"),
        (2, Status.FAILED_TO_READ, "d.txt is not UTF-8"),
        (4, Status.EMPTY_TEXT, "e.png: the text is empty"),
    ):
        with pytest.raises(BadSample, match=message) as raised:
            shard[number]
        assert raised.value.status is status


def test_a_folder_with_a_list_of_its_pictures(pictures: Path) -> None:
    (pictures / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "listed"}')
    [sample] = samples(open_source(pictures))
    assert (sample.text, sample.images) == ("listed", (pictures / "c.png",))


def test_what_is_none_of_these_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("")
    (tmp_path / "jsons").mkdir()
    (tmp_path / "jsons" / "part1.json").write_text("[]")
    for spec, message in (
        ("x.csv", "x.csv is of no known kind; expected a .json"),
        ("jsons", "no shards and no pictures; give one of its manifests, as part1.json; expected"),
        ("*.json", "a manifest is one file of this machine; name each on its own"),
        ("*.tar", "no .tar shards there"),
    ):
        with pytest.raises(ValueError, match=message.replace("*", r"\*")):
            open_source(tmp_path / spec)
    for missing in ("gone", "gone.json"):
        with pytest.raises(FileNotFoundError, match=missing):
            open_source(tmp_path / missing)


def test_pictures_beside_tars_are_not_passed_over(tmp_path: Path, pictures: Path) -> None:
    (pictures / "backup.tar").write_bytes(bytes(1024))
    with pytest.raises(ValueError, match=r"holds tars and pictures, as .*; give '.*/\*\.tar'"):
        open_source(pictures)


def test_sources_that_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Noting(open_module.ManifestSource):
        def __init__(self, path: Path, root: object) -> None:
            read.append(path.stem)
            super().__init__(path, root)  # type: ignore[arg-type]

    monkeypatch.setattr(open_module, "ManifestSource", Noting)
    for name in "cab":
        rows = [{"image": "i", "caption": f"{name}{n}"} for n in range(2)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "readme.txt").write_text("")
    sources = open_in_turns(tmp_path, keep=2)
    assert [Path(s.name).name for s in sources] == ["a.json", "b.json", "c.json"] and read == []
    assert [list(s.counts) for s in sources] == [[2]] * 3 and read == ["a", "b", "c"]
    assert [s.text for s in samples(sources[2])] == ["c0", "c1"] and read == ["a", "b", "c"]
    assert [s.text for s in samples(sources[0])] == ["a0", "a1"] and read == ["a", "b", "c", "a"]
    assert len(open_in_turns(str(tmp_path / "[ab].json"))) == 2
    with pytest.raises(ValueError, match="has no .json, .jsonl, .tar, .parquet files"):
        open_in_turns(tmp_path / "*.txt")


def test_shards_that_take_turns(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", name)
        write_parquet(tmp_path / f"{name}.parquet", "a table beside the shard")
    sources = open_in_turns(tmp_path)
    assert [s.text for source in sources for s in samples(source)] == ["a", "b"]
    assert len(open_in_turns(tmp_path / "{a,b}.parquet")) == 2
