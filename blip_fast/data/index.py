"""Features on disk: NAME.npy, and NAME.parquet that says what each row is and who computed it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blip_fast.data.files import replacing
from blip_fast.data.table import write_table

_KEY = b"blip_fast"  # in the parquet schema's metadata


@dataclass(frozen=True)
class FeatureIndex:
    """Features that can be searched.

    Attributes:
        path: of the .npy file.
        features: [N, E] float32, normalised, read from the disk as they are touched; rows of NaN
            are of pictures that could not be read.
        rows: one for each feature: "path" and "status" of a picture, or "text".
        facts: about the model: "model", "sha256", "image_size".
    """

    path: Path
    features: np.ndarray
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    @property
    def of_texts(self) -> bool:
        """Whether the features are those of texts; else they are of pictures."""
        return bool(self.rows) and "text" in self.rows[0]


def write_index(
    path: Path,
    features: np.ndarray,
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write the features, then the table: row n of one is row n of the other.

    Args:
        path: NAME.npy.
        columns: of the table, all of them text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, features)
    schema = pa.schema([(column, pa.string()) for column in columns])
    schema = schema.with_metadata({_KEY: json.dumps(dict(facts)).encode()})
    write_table(path.with_suffix(".parquet"), rows, schema)


def read_index(path: Path) -> FeatureIndex:
    """Open what `write_index` wrote.

    Args:
        path: NAME.npy, or NAME.

    Raises:
        ValueError: where a file is missing, damaged or not of the other's length.
    """
    path = path if path.suffix == ".npy" else path.with_name(path.name + ".npy")
    table = path.with_suffix(".parquet")
    for file in (path, table):
        if not file.is_file():
            raise ValueError(f"{file} is missing; `blip-fast embed DIR --output {path}` makes it")
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        found = pq.read_table(table)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} and its table cannot be read ({error}); embed again") from error
    if features.ndim != 2 or len(features) != len(found):
        raise ValueError(
            f"{path} has shape {features.shape} and {table.name} {len(found)} rows; they are not "
            "of one run, so embed again"
        )
    facts = json.loads((found.schema.metadata or {}).get(_KEY, b"{}"))
    return FeatureIndex(path, features, found.to_pylist(), facts)
