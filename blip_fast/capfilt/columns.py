"""The decisions of a run as columns of numbers: what counting needs, without texts or pictures.

A million rows are read in seconds, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_fast.capfilt.rows import committed
from blip_fast.images import Status

_ROWS = 8192  # rows in memory at a time
_TEXT = "candidates.list.element."
FLAGS = ("truncated", "degenerate", "duplicate")
_COLUMNS = ("source", "status", "kept", "itm_probability", "itc_similarity", *FLAGS)


@dataclass(frozen=True, eq=False)
class Texts:
    """The candidate texts of some neighbouring rows, in order.

    Attributes:
        row: int64 [N], the place of each text's row in the run, from 0.
        rows: the number of rows, those without texts included.
        web: bool [N]; the others are synthetic.
        status: [N], as `rows.SCHEMA` has it.
        kept: bool [N].
        itm, itc: float64 [N], the float32 of the table; NaN where there is no score.
        flags: bool [N] for each of `FLAGS`.
        without: those of texts that are never kept.
    """

    row: np.ndarray
    rows: int
    web: np.ndarray
    status: np.ndarray
    kept: np.ndarray
    itm: np.ndarray
    itc: np.ndarray
    flags: dict[str, np.ndarray]
    without: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.web)

    @property
    def eligible(self) -> np.ndarray:
        """bool [N]: texts that scores decide on; the others are never kept."""
        return self.able(self.without)

    def able(self, without: Sequence[str]) -> np.ndarray:
        """The same where texts with other flags are never kept."""
        scored = (self.status == Status.SUCCESS.value) & ~np.isnan(self.itm)
        for flag in ("duplicate", *without):
            scored &= ~self.flags[flag]
        return scored


def read_texts(
    folder: Path, shards: Sequence[str] | None = None, without: Sequence[str] = ()
) -> Iterator[Texts]:
    """The texts of a run's complete shards.

    Args:
        shards: names, those that are wanted; all where none are given.
        without: as of `Texts`.

    Raises:
        ValueError: where a table is damaged or is none of CapFilt's.
    """
    first = 0
    for name in committed(folder) if shards is None else shards:
        path = folder / f"{name}.parquet"
        with pq.ParquetFile(path) as table:
            if "candidates" not in table.schema_arrow.names:
                raise ValueError(f"{path} has no column candidates; it is no table of CapFilt's")
            columns = [_TEXT + column for column in _COLUMNS]
            for batch in table.iter_batches(_ROWS, columns=columns, use_threads=False):
                texts = texts_of(batch.column("candidates"), first, without)
                first += texts.rows
                yield texts


def texts_of(candidates: pa.ListArray, first: int = 0, without: Sequence[str] = ()) -> Texts:
    """The texts of a column `candidates`, whose first row is the run's row `first`."""
    texts = pc.list_flatten(candidates)
    lengths = pc.fill_null(pc.list_value_length(candidates), 0).to_numpy(zero_copy_only=False)
    found = {column: texts.field(column) for column in _COLUMNS}
    return Texts(
        row=np.repeat(np.arange(first, first + len(candidates), dtype=np.int64), lengths),
        rows=len(candidates),
        web=_flag(pc.equal(found["source"], "web")),
        status=found["status"].to_numpy(zero_copy_only=False),
        kept=_flag(found["kept"]),
        itm=_numbers(found["itm_probability"]),
        itc=_numbers(found["itc_similarity"]),
        flags={flag: _flag(found[flag]) for flag in FLAGS},
        without=without,
    )


def _flag(column: pa.Array) -> np.ndarray:
    return pc.fill_null(column, False).to_numpy(zero_copy_only=False).astype(bool)


def _numbers(column: pa.Array) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
