from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from blip_fast.capfilt import SCHEMA, CapFiltOptions, run_capfilt
from blip_fast.capfilt.rows import read_rows as capfilt_rows
from blip_fast.data.table import read_rows

OPTIONS = CapFiltOptions(batch_size=3)


def run(source: Path, output: Path, stub: Any, **settings: Any) -> dict[str, dict[str, Any]]:
    model = stub()
    run_capfilt(source, output, model, model, replace(OPTIONS, **settings))
    return {row["key"]: row for row in read_rows(output / "00000.parquet")}


def by_source(row: dict[str, Any], source: str) -> list[dict[str, Any]]:
    return [candidate for candidate in row["candidates"] if candidate["source"] == source]


def test_every_picture_is_a_row_in_order(source: Path, tmp_path: Path, stub: Any) -> None:
    rows = run(source, tmp_path / "out", stub)
    assert pq.read_schema(tmp_path / "out" / "00000.parquet").equals(SCHEMA)
    assert list(rows) == sorted(rows) and len(rows) == 7
    assert Path(rows["a_good.png"]["path"]) == source / "a_good.png"
    assert (rows["a_good.png"]["width"], rows["a_good.png"]["height"]) == (30, 20)
    broken = rows["d_broken.jpg"]
    assert broken["status"] == "failed_to_decode" and broken["error_message"]
    assert broken["candidates"] == [] and broken["width"] is None
    assert all(r["status"] == "success" for k, r in rows.items() if k != "d_broken.jpg")


def test_web_texts_are_judged(source: Path, tmp_path: Path, stub: Any) -> None:
    rows = run(source, tmp_path / "out", stub)
    web = {key: by_source(row, "web") for key, row in rows.items()}
    (good,) = web["a_good.png"]
    assert good["kept"] and good["itm_probability"] == pytest.approx(0.92)
    assert good["itm_logit"] == pytest.approx(2.4423, abs=1e-4)
    assert good["itc_similarity"] == 0.25
    (bad,) = web["b_bad.png"]
    assert not bad["kept"] and bad["status"] == "success"
    (nan,) = web["c_nan.png"]
    assert not nan["kept"] and nan["status"] == "failed_score" and nan["itm_probability"] is None
    (blank,) = web["d_blank.png"]
    assert not blank["kept"] and blank["status"] == "empty_text"
    assert web["e_none.png"] == [] and rows["e_none.png"]["web_texts"] == []
    # Whatever its web text is, a picture that can be read is captioned.
    for key, row in rows.items():
        synthetic = by_source(row, "synthetic")
        assert [c["kept"] for c in synthetic] == ([] if key == "d_broken.jpg" else [True])
    assert by_source(rows["b_bad.png"], "synthetic")[0]["token_ids"] == [1, 2, 3]


def test_sidecar_of_another_encoding_is_a_failed_text(
    source: Path, tmp_path: Path, stub: Any
) -> None:
    (source / "a_good.txt").write_bytes(b"caf\xe9")
    row = run(source, tmp_path / "out", stub)["a_good.png"]
    (web,) = by_source(row, "web")
    assert row["status"] == "success" and "not UTF-8" in row["error_message"]
    assert web["status"] == "failed_to_read" and not web["kept"]
    assert by_source(row, "synthetic")[0]["kept"]


def test_long_texts_are_flagged(source: Path, tmp_path: Path, stub: Any) -> None:
    (source / "a_good.txt").write_text("word " * 50, encoding="utf-8")
    rows = run(source, tmp_path / "out", stub)
    assert by_source(rows["a_good.png"], "web")[0]["truncated"]
    assert not by_source(rows["b_bad.png"], "web")[0]["truncated"]


def test_neither_batch_nor_order_changes_a_row(source: Path, tmp_path: Path, stub: Any) -> None:
    together = run(source, tmp_path / "a", stub)
    alone = run(source, tmp_path / "b", stub, batch_size=1)
    assert alone == together
    (source / "a_good.png").unlink()
    fewer = run(source, tmp_path / "c", stub)
    rest = {key: row for key, row in together.items() if key != "a_good.png"}
    assert fewer == {key: {**row, "number": row["number"] - 1} for key, row in rest.items()}
    other = run(source, tmp_path / "d", stub, seed=1)
    assert by_source(other["b_bad.png"], "synthetic") != by_source(fewer["b_bad.png"], "synthetic")


def test_one_model_sees_each_picture_once(source: Path, tmp_path: Path, stub: Any) -> None:
    both = stub()
    run_capfilt(source, tmp_path / "a", both, both, OPTIONS)
    assert both.seen == 6
    captioner, filter_ = stub("caption"), stub("retrieval")
    run_capfilt(source, tmp_path / "b", captioner, filter_, OPTIONS)
    assert (captioner.seen, filter_.seen) == (6, 6)
    assert read_rows(tmp_path / "a/00000.parquet") == read_rows(tmp_path / "b/00000.parquet")


def test_models_may_want_different_sizes(source: Path, tmp_path: Path, stub: Any) -> None:
    summary = run_capfilt(source, tmp_path / "a", stub(size=32), stub(size=48), OPTIONS)
    assert (summary.count, summary.successes) == (7, 6)


def test_several_captions(source: Path, tmp_path: Path, stub: Any) -> None:
    model = stub()
    run_capfilt(source, tmp_path / "a", model, model, CapFiltOptions(num_captions=2, num_beams=2))
    (call,) = model.caption_calls
    assert call["num_beams"] == 2 and "top_p" not in call
    rows = read_rows(tmp_path / "a/00000.parquet")
    assert [len(by_source(row, "synthetic")) for row in rows] == [2, 2, 2, 2, 0, 2, 2]


def test_kept_pairs_and_totals(source: Path, tmp_path: Path, stub: Any) -> None:
    model, done = stub(trained=False), []
    summary = run_capfilt(source, tmp_path / "out", model, model, OPTIONS, done.append)
    stats = json.loads((tmp_path / "out/totals.json").read_text(encoding="utf-8"))
    assert stats == summary.stats and summary.complete
    assert stats["count"] == 7 and stats["successes"] == 6 and sum(done) == 7
    assert stats["status_dict"] == {"failed_to_decode": 1, "success": 6}
    assert stats["texts"]["web"] == {
        "count": 5,
        "kept": 2,
        "dropped_share": 0.6,
        "truncated": 0,
        "degenerate": 0,
        "duplicate": 0,
        "status_dict": {"empty_text": 1, "failed_score": 1, "success": 3},
    }
    assert stats["texts"]["synthetic"]["dropped_share"] == 0 and stats["pairs"] == 8
    assert stats["settings"]["threshold"] == 0.5 and stats["settings"]["seed"] == 0
    assert stats["models"]["filter"]["sha256"] == "0" * 64
    assert [key for key, _, _ in summary.failures] == ["d_broken.jpg"]
    shard = json.loads((tmp_path / "out/00000_stats.json").read_text(encoding="utf-8"))
    assert (shard["count"], shard["successes"], shard["failed_to_resize"]) == (7, 8, 1)


def test_every_stage_is_timed_and_the_slowest_named(
    source: Path, tmp_path: Path, stub: Any
) -> None:
    model = stub()
    stats = run_capfilt(source, tmp_path / "out", model, model, OPTIONS).stats
    stages = stats["stages"]
    expected = ["open", "read", "decode", "captioner", "filter", "decide", "write"]
    assert list(stages) == expected and stats["slowest"] in expected
    assert all(stage["images"] == 7 for stage in stages.values())
    assert stages["captioner"]["lane"] == stages["filter"]["lane"] == "cpu"


def test_shards_of_a_folder(source: Path, tmp_path: Path, stub: Any) -> None:
    whole = run(source, tmp_path / "a", stub)
    model = stub()
    cut = replace(OPTIONS, shard_size=3, batch_size=2)
    summary = run_capfilt(source, tmp_path / "b", model, model, cut)
    assert summary.stats["shards"] == 3 and summary.stats["count"] == 7
    rows = list(capfilt_rows(tmp_path / "b"))
    assert [(row["shard"], row["number"]) for row in rows[2:5]] == [(0, 2), (1, 0), (1, 1)]
    places = {"shard": 0, "number": 0, "thumbnail": None}
    assert [{**row, **places} for row in rows] == [{**row, **places} for row in whole.values()]


def test_models_that_lack_a_part_are_refused(source: Path, tmp_path: Path, stub: Any) -> None:
    with pytest.raises(ValueError, match="captioner stub is of kind 'retrieval'"):
        run_capfilt(source, tmp_path / "out", stub("retrieval"), stub("retrieval"))
    with pytest.raises(ValueError, match="filter stub is of kind 'caption'"):
        run_capfilt(source, tmp_path / "out", stub("caption"), stub("caption"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures_is_refused(tmp_path: Path, stub: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no shards and no pictures"):
        run_capfilt(tmp_path / "empty", tmp_path / "out", stub(), stub())
    with pytest.raises(FileNotFoundError, match="is not there"):
        run_capfilt(tmp_path / "gone", tmp_path / "out", stub(), stub())


def test_a_folder_of_failures_is_recorded(tmp_path: Path, stub: Any) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.png").write_bytes(b"")
    summary = run_capfilt(tmp_path / "source", tmp_path / "out", stub(), stub())
    assert (summary.count, summary.successes) == (1, 0)
    assert summary.stats["texts"]["web"]["dropped_share"] is None
    assert summary.report.is_file()
