"""Sources that are not on this machine's disk: web servers, object stores, datasets."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from webserver import Site, serving

from blip_fast.capfilt import CapFiltOptions, StageFailed, read_rows, run_capfilt
from blip_fast.cli import main
from blip_fast.data import fetch
from blip_fast.images import load

OPTIONS = CapFiltOptions(batch_size=2)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// by aiohttp, which is not installed")
    for module in (fetch, load):
        monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0))
    with serving() as site:
        yield site


def jpeg(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (value, 40, 90)).save(file, "JPEG")
    return file.getvalue()


def rows(source: Any, output: Path, model: Any) -> list[dict[str, Any]]:
    run_capfilt(source, output, model, model, OPTIONS)
    return list(read_rows(output))


def same(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """But for where they came from."""
    return [{**row, "path": ""} for row in ours] == [{**row, "path": ""} for row in others]


def check_both_patterns(folder: str, two_tars: Path, tmp_path: Path, stub: Any) -> None:
    """Shards in a folder elsewhere give what those on the disk do, by braces and by a star."""
    here = rows(two_tars, tmp_path / "here", stub())
    for number, name in enumerate(("{00000..00001}.tar", "*.tar")):
        there = rows(f"{folder}/{name}", tmp_path / str(number), stub())
        assert same(here, there)
        assert there[0]["path"] == f"{folder}/00000.tar/000000000.jpg"


def test_shards_of_a_web_server(site: Site, two_tars: Path, tmp_path: Path, stub: Any) -> None:
    here = rows(two_tars, tmp_path / "here", stub())
    for path in sorted(two_tars.iterdir()):
        site.put(f"/{path.name}", path.read_bytes(), failing=(500, 0))
    there = rows(f"{site.url}/{{00000..00001}}.tar", tmp_path / "there", stub())
    assert len(here) == 6 and same(here, there)
    assert there[0]["path"] == f"{site.url}/00000.tar/000000000.jpg"
    signed = f"{site.url}/{{00000..00001}}.tar?download=true"
    assert same(here, rows(signed, tmp_path / "signed", stub()))
    joined = f"{site.url}/00000.tar::{two_tars}/00001.tar"
    assert same(here, rows(joined, tmp_path / "joined", stub()))


def test_shards_in_an_object_store(two_tars: Path, tmp_path: Path, stub: Any) -> None:
    """By fsspec's memory, which needs no server."""
    import fsspec

    files = fsspec.filesystem("memory")
    for path in two_tars.iterdir():
        files.pipe_file(f"/elsewhere/{path.name}", path.read_bytes())
    here = rows(two_tars, tmp_path / "here", stub())
    for number, spec in enumerate(
        ("memory://elsewhere/{00000..00001}.tar", "memory://elsewhere/0*.tar")
    ):
        assert same(here, rows(spec, tmp_path / str(number), stub()))
    files.rm("/elsewhere", recursive=True)


def test_shards_of_the_hub(
    two_tars: Path, tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf:// by huggingface_hub itself, at a server of ours."""
    import fsspec

    shards = sorted(two_tars.iterdir())
    with serving() as site:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": site.url})
        repository = "/api/datasets/somebody/pairs"
        site.put(repository, json.dumps({"id": "somebody/pairs", "sha": "0" * 40}).encode())
        listed = [
            {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
            for p in shards
        ]
        site.put(f"{repository}/tree/main", json.dumps(listed).encode())
        for path in shards:
            site.put(f"/datasets/somebody/pairs/resolve/main/{path.name}", path.read_bytes())
        check_both_patterns("hf://datasets/somebody/pairs", two_tars, tmp_path, stub)
        fetched = [path for path in site.asked if "/resolve/" in path]
        assert len(fetched) == 4, "each shard is fetched once a run"


def test_shards_in_a_bucket(
    two_tars: Path, tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3:// by s3fs itself, at a server of ours."""
    pytest.importorskip("s3fs", reason="needs the extra blip-fast[remote]")
    import fsspec

    shards = sorted(two_tars.iterdir())
    with serving() as site:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": site.url, "anon": True})
        contents = "".join(
            f"<Contents><Key>web/{p.name}</Key><Size>{p.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag></Contents>"
            for p in shards
        )
        listing = (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>pairs</Name>'
            f"<KeyCount>2</KeyCount><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )
        site.put("/pairs", listing.encode())
        for path in shards:
            site.put(f"/pairs/web/{path.name}", path.read_bytes())
        check_both_patterns("s3://pairs/web", two_tars, tmp_path, stub)


def test_shards_in_google_cloud_storage(
    two_tars: Path, tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gs:// by gcsfs itself, at a server of ours."""
    # Buckets of a later kind are asked for by gRPC, which our server does not speak.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs", reason="needs the extra blip-fast[remote]")
    import fsspec

    shards = sorted(two_tars.iterdir())
    with serving() as site:
        monkeypatch.setitem(fsspec.config.conf, "gs", {"endpoint_url": site.url, "token": "anon"})
        objects = [
            {"name": f"web/{p.name}", "bucket": "pairs", "size": str(p.stat().st_size)}
            for p in shards
        ]
        bucket = "/storage/v1/b/pairs/o"
        site.put(bucket, json.dumps({"items": objects}).encode())
        for path, about in zip(shards, objects, strict=True):
            site.put(f"{bucket}/web%2F{path.name}", json.dumps(about).encode())
            site.put(f"/download{bucket}/web%2F{path.name}", path.read_bytes())
        check_both_patterns("gs://pairs/web", two_tars, tmp_path, stub)


def test_a_table_of_urls(site: Site, tmp_path: Path, stub: Any) -> None:
    urls = [site.put(f"/{n}.jpg", jpeg(n), failing) for n, failing in enumerate([(), (503, 0)])]
    urls += [f"{site.url}/none.jpg", site.put("/gone.jpg", jpeg(), failing=(410,) * 9)]
    urls += ["http://nobody.invalid/a.jpg", site.put("/private.jpg", jpeg(), failing=(403,) * 9)]
    table = pa.table({"url": urls, "TEXT": [f"text {n}" for n in range(6)]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet", tmp_path / "out", stub())
    assert [row["status"] for row in found] == ["success"] * 2 + ["failed_to_read"] * 4
    for row, reason in zip(found[2:], ("404", "410", "nobody.invalid", "403"), strict=True):
        assert reason in row["error_message"].removeprefix(row["path"])
    assert [row["path"] for row in found] == urls
    counts = [site.asked.count(f"/{name}.jpg") for name in (0, "none", "gone", "private")]
    assert counts == [1, 1, 1, 1]  # what will not come is not asked for again


def test_a_server_that_stays_down(site: Site, two_tars: Path, tmp_path: Path, stub: Any) -> None:
    path = two_tars / "00000.tar"
    site.put("/00000.tar", path.read_bytes(), failing=(500,) * 3)
    with pytest.raises(StageFailed, match="shard 00000 .* cannot be opened: .*500"):
        rows(f"{site.url}/00000.tar", tmp_path / "out", stub())
    assert site.asked == ["/00000.tar"] * 3
    there = rows(f"{site.url}/00000.tar", tmp_path / "out", stub())  # the same call goes on
    assert same(there, rows(path, tmp_path / "here", stub()))


def test_the_command(site: Site, two_tars: Path, tmp_path: Path, capsys: Any) -> None:
    site.put("/00000.tar", (two_tars / "00000.tar").read_bytes())
    model = ("--captioner", "scenes", "--filter", "scenes", "--device", "cpu")
    command = ["capfilt", f"{site.url}/00000.tar", "--output", str(tmp_path / "out"), *model]
    assert main(command) == 0
    assert "3 of 3 pictures read" in capsys.readouterr().err
    command[1] = f"{site.url}/none.tar"
    command[3] = str(tmp_path / "none")
    assert main(command) == 1
    assert "blip-fast: error: shard 00000 of http://" in capsys.readouterr().err


class Feature:
    """What stands for `datasets.Image`."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class Table:
    """What stands for a `datasets.Dataset`: its names, and rows that know whether they decode."""

    def __init__(self, rows: list[dict[str, Any]], feature: Any) -> None:
        self._rows, self._fingerprint = rows, "f1"
        self.column_names = list(rows[0])
        self.features = {name: None for name in rows[0]} | {"image": feature}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        assert not self.features["image"].decode, "pictures are not decoded twice"
        return self._rows[place]

    def cast_column(self, name: str, feature: Any) -> Table:
        assert name == "image"
        return Table(self._rows, feature)


def test_what_is_no_source_and_no_model(tmp_path: Path, stub: Any) -> None:
    class Streamed:
        column_names, features = ("image",), None

    for source, reason in (
        ({"train": Table([{"image": b"x"}], None)}, "a dict is no source .* dataset\\['train'\\]"),
        (["a.jpg"], "a list is no source"),
        (Streamed(), "without streaming"),
    ):
        with pytest.raises(ValueError, match=reason):
            run_capfilt(source, tmp_path / "out", stub(), stub())
    with pytest.raises(ValueError, match="'scenes' is no model but a name"):
        run_capfilt(tmp_path, tmp_path / "out", stub(), "scenes")  # type: ignore[arg-type]


def test_what_looks_like_a_dataset(tmp_path: Path, stub: Any) -> None:
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    held = [
        {"bytes": jpeg(1), "path": "a.jpg"},
        {"bytes": None, "path": str(tmp_path / "b.jpg")},
        None,
        {"bytes": jpeg(3), "path": None},
    ]
    texts = ["one", ["two", "bad"], None, math.nan]  # the last as pandas has it
    values = [{"image": i, "text": t} for i, t in zip(held, texts, strict=True)]
    found = rows(Table(values, Feature()), tmp_path / "out", stub())
    assert [row["status"] for row in found] == ["success", "success", "failed_to_read", "success"]
    assert [row["web_texts"] for row in found] == [["one"], ["two", "bad"], [], []]
    kept = [[c["kept"] for c in row["candidates"] if c["source"] == "web"] for row in found]
    assert kept == [[True], [True, False], [], [False]]
    assert found[3]["error_message"] == "its text is float"
    assert found[3]["candidates"][0]["status"] == "failed_to_read"


def test_datasets(tmp_path: Path, stub: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    pictures = [{"bytes": jpeg(1), "path": None}, {"bytes": None, "path": str(tmp_path / "b.jpg")}]
    table = datasets.Dataset.from_dict({"image": pictures, "text": ["one", "a bad one"]})
    found = rows(table.cast_column("image", datasets.Image()), tmp_path / "out", stub())
    assert [row["status"] for row in found] == ["success"] * 2
    assert [row["candidates"][0]["kept"] for row in found] == [True, False]
    written = table.cast_column("image", datasets.Image())
    written.to_parquet(tmp_path / "t.parquet")
    again = rows(tmp_path / "t.parquet", tmp_path / "again", stub())
    assert [row["width"] for row in again] == [12, 12]
