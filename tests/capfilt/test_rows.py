from __future__ import annotations

from pathlib import Path

from blip_fast.capfilt.rows import SCHEMA, Candidate, Row, Scores, committed, read_rows
from blip_fast.data.table import write_table
from blip_fast.images import Status

CANDIDATE = Candidate(
    "synthetic", "a cat", 1, (1, 2), -0.5, itm_probability=0.75, filters=(Scores(0.75, 1, 0.5),)
)
ROWS = [
    Row("a", "/a.jpg", Status.SUCCESS, 0, 0, "", 3, 2, ("x", "y"), (CANDIDATE,), b"jpeg"),
    Row("b", "/b.jpg", Status.TOO_LARGE, 0, 1, "many pixels"),
]


def write(folder: Path, name: str, rows: list[Row]) -> None:
    write_table(folder / f"{name}.parquet", [row.to_dict() for row in rows], SCHEMA)


def test_rows_survive_the_table(tmp_path: Path) -> None:
    write(tmp_path, "00000", ROWS)
    (tmp_path / "00000_stats.json").write_text("{}")
    assert [Row.from_dict(row) for row in read_rows(tmp_path)] == ROWS


def test_only_complete_shards_are_read_in_order(tmp_path: Path) -> None:
    for name in ("00010", "00009", "100000", "00011"):
        write(tmp_path, name, ROWS[:1])
        if name != "00011":
            (tmp_path / f"{name}_stats.json").write_text("{}")
    assert committed(tmp_path) == ["00009", "00010", "100000"]
    assert len(list(read_rows(tmp_path))) == 3


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path, "00000", ROWS)
    (tmp_path / "00000_stats.json").write_text("{}")
    columns = ["status", "candidates.list.element.kept", "candidates.list.element.status"]
    first, second = read_rows(tmp_path, columns)
    assert first == {"status": "success", "candidates": [{"status": "success", "kept": False}]}
    assert second == {"status": "too_large", "candidates": []}
