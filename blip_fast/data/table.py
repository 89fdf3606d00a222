"""Parquet tables, written atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip_fast.data.files import replacing


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows under a fixed schema, so that a column of nothing but nulls keeps its type.

    Raises:
        ValueError: where a value does not fit its column (pyarrow's ArrowInvalid is one).
    """
    table = pa.Table.from_pylist(list(rows), schema=schema)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file as dictionaries."""
    return pq.ParquetFile(path).read().to_pylist()
