"""Web data of every kind: every picture that was attempted, whatever is wrong with it."""

from __future__ import annotations

import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tars import change, data_of, header_of, twenty

from blip_fast.data.web import WebPicture, WebSource, manifests, open_web
from blip_fast.data.web.manifests import WebManifest
from blip_fast.images import Status


def pictures(source: WebSource) -> list[WebPicture]:
    shards = [source.open(n) for n in range(len(source))]
    return [shard[n] for shard in shards for n in range(len(shard))]


def jpeg(path: Path) -> bytes:
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    return path.read_bytes()


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_folder(tmp_path: Path) -> None:
    for n in range(5):
        jpeg(tmp_path / f"{n}.jpg")
    (tmp_path / "1.txt").write_text("one\n")
    (tmp_path / "2.txt").write_bytes(b"\xff")
    (tmp_path / "3.txt").write_text("")
    source = open_web(tmp_path, 2)
    assert (len(source), source.count) == (3, 5)
    found = pictures(source)
    assert [p.key for p in found] == [f"{n}.jpg" for n in range(5)]
    assert [p.texts for p in found] == [(), ("one",), (), ("",), ()]
    assert [p.text_failed for p in found] == [False, False, True, False, False]
    assert open_web(tmp_path, 2).identity == source.identity
    (tmp_path / "4.jpg").rename(tmp_path / "5.jpg")
    assert open_web(tmp_path, 2).identity != source.identity


def test_tars_give_texts_of_txt_or_json_and_pictures_without(tmp_path: Path) -> None:
    members = {
        "a.jpg": jpeg(tmp_path / "x.jpg"),
        "a.txt": b" of txt ",
        "a.json": b'{"caption": "of json", "uid": "1"}',
        "b.PNG": b"png",
        "b.json": b'{"caption": "of json"}',
        "c.webp": b"webp",
        "d.txt": b"no picture",
        "e.jpg": b"x",
        "e.txt": b"\xff\xfe",
        "f.gif": b"gif",
        "f.json": b"[",
    }
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in members.items():
            (tmp_path / "member").write_bytes(data)
            tar.add(tmp_path / "member", name)
    a, b, c, d, e, f = pictures(open_web(tmp_path / "0.tar"))
    assert a.image == members["a.jpg"] and a.texts == ("of txt",) and a.extra["uid"] == "1"
    assert b.texts == ("of json",) and c.texts == () and not c.text_failed
    assert d.image is None and d.status is Status.FAILED_TO_READ and "it has txt" in d.error
    assert e.text_failed and e.image == b"x" and "its text" in e.error
    assert f.text_failed and f.image == b"gif" and "its json" in f.error
    assert a.path == f"{tmp_path}/0.tar/a.jpg"


def test_a_damaged_tar_gives_what_can_be_read_and_says_what_cannot(tmp_path: Path) -> None:
    """Of 20 samples: a damaged header, zeros in the middle, and the end cut off."""
    path = twenty(tmp_path)
    places = header_of(path, "00005.jpg"), header_of(path, "00009.txt"), data_of(path, "00018.jpg")
    change(path, places[0] + 100, b"damage")
    change(path, places[1], bytes(512))
    path.write_bytes(path.read_bytes()[: places[2] + 100])
    write_json(tmp_path / "00000_stats.json", {"successes": 20})
    shard = open_web(path).open(0)
    assert [loss["offset"] for loss in shard.losses] == [*places[:2], header_of_cut(places[2])]
    assert (len(shard), shard.lost) == (18, 2)
    lost = {p.key for p in (shard[n] for n in range(18)) if p.image is None}
    assert lost == {"00005"}
    without = [n for n in range(18) if shard[n].key == "00009"]
    assert shard[without[0]].texts == () and shard[without[0]].image is not None


def header_of_cut(data: int) -> int:
    return data - 512


def test_tars_by_pattern_and_url(tmp_path: Path) -> None:
    import fsspec

    twenty(tmp_path)
    (tmp_path / "00000.tar").rename(tmp_path / "00001.tar")
    twenty(tmp_path)
    source = open_web(f"{tmp_path}/{{00000..00001}}.tar")
    assert len(source) == 2 and source.count is None and len(pictures(source)) == 40
    assert len(open_web(f"{tmp_path}/00000.tar::{tmp_path}/00001.tar")) == 2
    assert source.identity == open_web(tmp_path).identity
    with fsspec.open("memory://web/7.tar", "wb") as file:
        file.write((tmp_path / "00000.tar").read_bytes())
    (first, *_) = pictures(open_web("memory://web/7.tar"))
    assert first.path == "memory://web/7.tar/00000.jpg" and first.image


def test_parquet_is_cut_across_row_groups(tmp_path: Path) -> None:
    table = pa.table({
        "url": [f"memory://a/{n}.jpg" for n in range(10)],
        "TEXT": [None if n == 3 else f" text {n}" for n in range(10)],
        "uid": [f"u{n}" for n in range(10)],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    source = open_web(tmp_path, 3)
    assert (len(source), source.count) == (4, 10)
    found = pictures(source)
    assert [p.key for p in found] == [f"u{n}" for n in range(10)]
    assert [p.image for p in found] == [f"memory://a/{n}.jpg" for n in range(10)]
    assert found[3].texts == () and found[4].texts == ("text 4",)


def test_parquet_with_bytes_and_without_texts(tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": None}, {"bytes": None, "path": "a.jpg"}, None]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    found = pictures(open_web(tmp_path / "a.parquet"))
    assert [p.image for p in found] == [b"x", tmp_path / "a.jpg", None]
    assert found[2].status is Status.FAILED_TO_READ and found[0].key == "a.parquet/0"
    pq.write_table(pa.table({"n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no column of pictures"):
        open_web(tmp_path / "b.parquet")


def test_parquet_with_several_texts_a_picture(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": [{"bytes": b"x"}, {"bytes": b"y"}, {"bytes": None}],
            "caption": [["one", " two "], [], None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = pictures(open_web(tmp_path / "a.parquet"))
    assert [picture.texts for picture in found] == [("one", "two"), (), ()]
    assert [picture.status for picture in found][1:] == [Status.SUCCESS, Status.FAILED_TO_READ]
    named = pa.table({"path": ["a.jpg"], "text": pa.array(["coded"]).dictionary_encode()})
    pq.write_table(named, tmp_path / "b.parquet")
    (coded,) = pictures(open_web(tmp_path / "b.parquet"))
    assert coded.texts == ("coded",) and coded.path == str(tmp_path / "a.jpg")


def test_damaged_parquet_is_no_disk_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    images = [bytes([number]) * 999 for number in range(2)]
    pq.write_table(pa.table({"image": images}), path, row_group_size=1, use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xee" * chunk.total_compressed_size
    path.write_bytes(data)
    source = open_web(path, 1)
    assert len(source.open(0)) == 1
    with pytest.raises(ValueError, match="a.parquet, row group 1 is damaged: "):
        source.open(1)


def test_rows_of_one_picture_become_one(tmp_path: Path) -> None:
    rows = [
        {"image": "b.jpg", "caption": "b 1"},
        {"image": "a.jpg", "caption": ["a 1", "a 2"]},
        {"image": "b.jpg", "caption": "b 2"},
        {"image": "c.jpg"},
        {"image": "d.jpg", "caption": 3},
        {"nothing": 1},
        {"url": "https://e/e.jpg", "text": None},
    ]
    source = open_web(write_json(tmp_path / "m.json", rows), 2)
    assert isinstance(source, WebManifest) and (len(source), source.count) == (3, 6)
    found = {p.key: p for p in pictures(source)}
    assert list(found) == ["b.jpg", "a.jpg", "c.jpg", "d.jpg", "row 5", "https://e/e.jpg"]
    assert found["b.jpg"].texts == ("b 1", "b 2") and found["a.jpg"].texts == ("a 1", "a 2")
    assert found["b.jpg"].image == tmp_path / "b.jpg" and not found["c.jpg"].text_failed
    assert found["d.jpg"].text_failed and "caption 3 is not a text" in found["d.jpg"].error
    assert found["row 5"].image is None and "names no picture" in found["row 5"].error
    assert found["https://e/e.jpg"].image == "https://e/e.jpg"
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows[:3])) + "\n{broken\n")
    *good, bad = pictures(open_web(tmp_path / "m.jsonl", image_root="/root"))
    assert [p.texts for p in good] == [("b 1", "b 2"), ("a 1", "a 2")] and "line 4" in bad.error
    assert good[0].image == Path("/root/b.jpg")


def test_json_lines_are_not_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    row = json.dumps({"url": "https://example.org/a.jpg", "caption": "a dog on a beach"}) + "\n"
    path.write_text(row * 20_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in manifests._read(path, path.name)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


def test_coco_and_karpathy(tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [{"image_id": n, "caption": c} for n, c in ((8, "x"), (7, "y"), (8, "z"))],
    }
    found = pictures(open_web(write_json(tmp_path / "coco.json", coco)))
    assert [(p.key, p.texts) for p in found] == [("7.jpg", ("y",)), ("8.jpg", ("x", "z"))]
    karpathy = {
        "dataset": "coco",
        "images": [{"filepath": "val2014", "filename": "9.jpg", "sentences": [{"raw": "s"}]}],
    }
    (only,) = pictures(open_web(write_json(tmp_path / "k.json", karpathy), image_root=tmp_path))
    assert only.image == tmp_path / "val2014/9.jpg" and only.texts == ("s",)
    with pytest.raises(ValueError, match="names no picture; expected image"):
        open_web(write_json(tmp_path / "no.json", [{"a": 1}]))


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    data = jpeg(tmp_path / "a.jpg")
    rows = {"image": [str(tmp_path / "a.jpg"), None], "text": ["one", None]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    source = open_web(dataset, 1)
    assert (len(source), source.count) == (2, 2)
    one, two = pictures(source)
    assert one.texts == ("one",) and two.texts == () and two.image is None
    held = one.image if isinstance(one.image, bytes) else Path(str(one.image)).read_bytes()
    assert held == data
    with pytest.raises(ValueError, match="no column of pictures"):
        open_web(datasets.Dataset.from_dict({"a": [1]}))


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_size is 0"):
        open_web(tmp_path, 0)
    twenty(tmp_path)
    with pytest.raises(ValueError, match="leave image_root"):
        open_web(tmp_path / "00000.tar", image_root="x")
