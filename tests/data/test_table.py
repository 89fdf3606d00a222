from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from blip_fast.data.table import read_rows, write_table

SCHEMA = pa.schema([("text", pa.string()), ("score", pa.float32())])


def test_columns_of_nulls_keep_their_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": "猫", "score": None}, {"text": None, "score": None}]
    write_table(path, rows, SCHEMA)
    assert pa.parquet.read_schema(path).equals(SCHEMA)
    assert read_rows(path) == rows


def test_a_value_of_another_type_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, [{"text": "old", "score": 1.0}], SCHEMA)
    with pytest.raises((ValueError, TypeError)):
        write_table(path, [{"text": "new", "score": "high"}], SCHEMA)
    assert read_rows(path) == [{"text": "old", "score": 1.0}]
