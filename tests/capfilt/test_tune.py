from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from runs import picture, text, write_shards

from blip_fast.capfilt.columns import read_texts, texts_of
from blip_fast.capfilt.count import GRID
from blip_fast.capfilt.decide import decide
from blip_fast.capfilt.labels import Labels, judge, read_labels
from blip_fast.capfilt.rows import SCHEMA, Candidate, Row, read_rows
from blip_fast.capfilt.tune import curve, qualities
from blip_fast.capfilt.view import Rule, decided
from blip_fast.cli import main
from blip_fast.data.table import read_rows as read_table
from blip_fast.data.table import write_table
from blip_fast.images import Status

# What a threshold meets: on it, just beside it, no score, a status, a repeated text, no text.
ODD = [
    text("web", "on", 0.5),
    text("web", "below", float(np.nextafter(np.float32(0.5), np.float32(0)))),
    text("synthetic", "high", 1.0, itc=-0.3),
    text("synthetic", "again", 0.9, duplicate=True),
    Candidate("web", "", status=Status.EMPTY_TEXT),
    Candidate("synthetic", "nan", status=Status.FAILED_SCORE),
    text("web", "seventy", float(np.float32(0.7))),
    text("web", "zero", 0.0, itc=0.4),
]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    rows = [
        picture(0, *ODD[:3]),
        Row("broken", "/b", Status.FAILED_TO_READ, number=1),
        picture(2, *ODD[3:]),
    ]
    return write_shards(tmp_path / "odd", [rows[:1], rows[1:]])


@pytest.mark.parametrize("without", [(), ("degenerate",), ("truncated", "degenerate")])
@pytest.mark.parametrize("itc", [None, 0.25, -0.3])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 0.9, 1.0])
def test_the_rule_is_the_runs_own(
    threshold: float, itc: float | None, without: tuple[Any, ...]
) -> None:
    """Columns decide as `decide` does, row by row."""
    flagged = (
        text("synthetic", "a a a", 0.95, degenerate=True), text("web", "cut", 0.95, truncated=True),
    )  # fmt: skip
    row = picture(0, *ODD, *flagged).to_dict()
    batch = pa.RecordBatch.from_pylist([row, row], schema=SCHEMA)
    texts = texts_of(batch.column("candidates"))
    kept = Rule(threshold, itc, without).keeps(texts)
    stored = [Candidate.from_dict(c) for c in batch.to_pylist()[0]["candidates"]]
    wanted = [decide(candidate, threshold, itc, without).kept for candidate in stored]
    assert kept.tolist() == wanted * 2
    rewritten = decided(batch, kept).to_pylist()
    assert [c["kept"] for c in rewritten[1]["candidates"]] == wanted
    for value in rewritten:  # and nothing else has changed
        for candidate, old in zip(value["candidates"], row["candidates"], strict=True):
            candidate["kept"] = old["kept"]
    assert pa.RecordBatch.from_pylist(rewritten, schema=SCHEMA).equals(batch)


def test_rows_of_a_slice_are_its_own() -> None:
    rows = [picture(n, *ODD[:n]).to_dict() for n in range(4)]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA).slice(2)
    texts = texts_of(batch.column("candidates"), first=10)
    assert texts.row.tolist() == [10, 10, 11, 11, 11] and texts.rows == 2
    assert texts.web.tolist() == [True, True, True, True, False]
    assert decided(batch, texts.kept).equals(batch)


def test_shares_count_every_text(odd: Path) -> None:
    told = curve(odd)
    assert told.rows == 3 and told.totals["web"].count == 5 and told.totals["synthetic"].count == 3
    web, synthetic = told.kept["web"], told.kept["synthetic"]
    assert web is not None and synthetic is not None
    at = {round(float(t), 2): n for n, t in enumerate(GRID)}
    assert [web[at[t]] for t in (0.0, 0.5, 0.7, 0.71, 1.0)] == [0.8, 0.4, 0.0, 0.0, 0.0]
    assert [web[at[t]] for t in (0.49, 0.69)] == [0.6, 0.2]
    assert [synthetic[at[t]] for t in (0.0, 1.0)] == [1 / 3, 1 / 3]
    strict = curve(odd, itc_threshold=0.3).kept["web"]
    assert strict is not None and strict[at[0.0]] == 0.2


def test_shares_and_quality_leave_flagged_texts_out(tmp_path: Path) -> None:
    row = picture(
        0, text("synthetic", "a a a", 0.875, degenerate=True), text("synthetic", "a cat", 0.75)
    )
    run = write_shards(tmp_path / "run", [[row]])
    labels = labels_of((row.key, "synthetic", "a a a", False), (row.key, None, "a cat", True))
    told, all_of_them = curve(run, labels), curve(run, labels, without=())
    assert told.kept["synthetic"] == [0.5] * 76 + [0.0] * 25
    assert all_of_them.kept["synthetic"] == [1.0] * 76 + [0.5] * 12 + [0.0] * 13
    assert told.quality[50].precision == 1.0 and all_of_them.quality[50].precision == 0.5


def test_float32_of_a_decimal_is_compared_as_it_is() -> None:
    """0.7 as float32 is below 0.7, so the run did not keep it, and neither does a view."""
    assert float(np.float32(0.7)) < 0.7
    assert not decide(ODD[6], 0.7).kept


def labels_of(*rows: tuple[Any, ...]) -> Labels:
    labels = Labels()
    for row in rows:
        labels.add(*row)
    return labels


def test_precision_and_recall(odd: Path) -> None:
    labels = labels_of(
        ("000000000", "web", "on", True),
        ("000000000", "web", "below", False),
        ("000000000", "synthetic", None, "false"),
        ("000000002", None, "seventy", 1),
        ("000000002", "web", "", "true"),  # has no score, so no threshold keeps it
        ("000000002", "synthetic", "again", True),  # a repeated text counts once, with the first
        ("nowhere", None, None, True),
    )
    judged = judge(odd, labels)
    assert len(judged) == 5
    low, half, high = qualities(judged, [0.0, 0.5, 0.9])
    assert (low.precision, low.recall) == (0.5, 2 / 3)
    assert (half.precision, half.recall, half.f1) == (2 / 3, 2 / 3, pytest.approx(2 / 3))
    assert (high.precision, high.recall, high.f1) == (0.0, 0.0, 0.0)
    (none,) = qualities(judged, [0.9], itc_threshold=0.9)
    assert (none.precision, none.recall, none.f1) == (None, 0.0, None)


def test_quality_by_brute_force(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores, true = random.random(200).astype(np.float32).tolist(), random.random(200) < 0.4
    rows = [picture(n, text("web", "x", scores[n])) for n in range(200)]
    labels = labels_of(*((f"{n:09d}", "web", None, bool(true[n])) for n in range(200)))
    told = curve(write_shards(tmp_path, [rows[:90], rows[90:]]), labels)
    for threshold, quality in zip(GRID.tolist(), told.quality, strict=True):
        kept = [t for score, t in zip(scores, true, strict=True) if score >= threshold]
        assert quality.precision == (sum(kept) / len(kept) if kept else None)
        assert quality.recall == sum(kept) / true.sum()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", '[{"key": "k", "label": true}, {"key": "m", "label": "unsure"}]'),
        ("x.jsonl", '{"key": "k", "text": "a", "source": "web", "label": 1}\n'),
        ("x.json", '{"k": true, "m": "?"}'),
        ("x.json", '{"k": {"verdict": "true", "noise": "none"}, "m": {"verdict": "half"}}'),
    ],
)
def test_labels_of_json(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    labels = read_labels(tmp_path / name)
    assert labels.of("k", "web", "a") is True and labels.of("k", "synthetic", "b") is None
    assert labels.of("other", "web", "a") is None


def test_labels_of_scenes(tmp_path: Path) -> None:
    """What `blip-fast scenes make` writes, by its tables and by its tars alike."""
    from blip_fast.scenes.pairs import World
    from blip_fast.scenes.shards import make_shards

    make_shards(tmp_path / "world", World(0, "train", 32, noise=0.5), 12, 6)
    rows = [row for n in (0, 1) for row in read_table(tmp_path / f"world/0000{n}.parquet")]
    by_table = read_labels(tmp_path / "world")
    by_tar = read_labels(tmp_path / "world/0000{0,1}.tar")
    assert len(by_table) == len(by_tar) == 12
    for row in rows:
        said = by_table.of(row["key"], "web", row["caption"])
        assert said is (row["verdict"] == "true") is by_tar.of(row["key"], "web", row["caption"])
    assert len({row["verdict"] == "true" for row in rows}) == 2


def test_labels_that_help_nobody(tmp_path: Path, odd: Path) -> None:
    for content, message in (
        ('[{"label": true}]', "row 0: a label needs the fields key and label"),
        ('[{"key": "k", "label": "unsure"}]', "no label that is true or false"),
        ("[7]", "row 0: a label needs"),
    ):
        (tmp_path / "x.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_labels(tmp_path / "x.json")
    with pytest.raises(ValueError, match="like 'k' there and like '000000000' here"):
        judge(odd, labels_of(("k", None, None, True)))


def test_tables_of_others_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "00000.parquet", [{"key": "a"}], pa.schema([("key", pa.string())]))
    (tmp_path / "00000_stats.json").write_text("{}")
    with pytest.raises(ValueError, match="no column candidates"):
        list(read_texts(tmp_path))


def test_the_command_tells_shares(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(odd), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(told) == 101 and told[50] == {
        "threshold": 0.5, "web_kept": 0.4, "synthetic_kept": round(1 / 3, 6),
    }  # fmt: skip
    assert main(["tune", str(odd), "--threshold", "0.52"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "3 pictures, 5 web texts, 3 synthetic texts"
    (marked,) = [line for line in table if line.startswith(">")]
    assert marked.split() == [">", "0.52", "20.0%", "33.3%"]


def test_the_command_with_labels(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "l.json").write_text('{"000000000": true, "000000002": false}', encoding="utf-8")
    assert main(["tune", str(odd), "--labels", str(tmp_path / "l.json")]) == 0
    out = capsys.readouterr().out
    assert "precision" in out and out.endswith(f"{odd / 'report.html'}\n")
    assert "Precision" in (odd / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "x"], "--output needs the --threshold"),
        (["--tars"], "give its --output"),
        (["--threshold", "2"], "threshold 2.0 is a probability"),
        (["--threshold", "0.5", "--itc-threshold", "7"], "itc_threshold 7.0 is a cosine"),
    ],
)
def test_flags_that_contradict(
    odd: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(odd), *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(tmp_path)]) == 1
    assert "holds no finished shard" in capsys.readouterr().err


def test_nothing_is_read_but_numbers(odd: Path) -> None:
    """Decisions do not depend on columns that are not asked for."""
    (texts, *_) = read_texts(odd)
    assert len(texts) == 3 and math.isclose(texts.itc[2], -0.3, rel_tol=1e-6)
    assert next(iter(read_rows(odd, ["key"]))) == {"key": "000000000"}
