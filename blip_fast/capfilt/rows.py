"""What CapFilt records: one row for every picture it attempted, with every candidate text.

A run's folder holds a table for each shard, `00000.parquet` and so on. A shard counts once its
`00000_stats.json` is there, which is written last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from blip_fast.images import Status

Source = Literal["web", "synthetic"]
SOURCES: tuple[Source, ...] = ("web", "synthetic")

MARK = "_stats.json"  # what the name of a shard's commit mark ends in

_READ = 256  # rows in memory at a time

# `status` is the vocabulary of blip_fast.images.Status. Scores are null where there are none.
_SCORES = [
    ("itm_probability", pa.float32()),  # softmax
    ("itm_logit", pa.float32()),  # of "matched"
    ("itc_similarity", pa.float32()),  # cosine
]
_CANDIDATE = pa.struct(
    [
        ("source", pa.string()),  # "web" or "synthetic"
        ("captioner", pa.int32()),  # which of the run's wrote it, from 0; null: web
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),  # as written: [DEC], prompt, text, [SEP]; empty: web
        ("log_probability", pa.float32()),  # natural, of the caption after the prompt; null: web
        ("truncated", pa.bool_()),  # cut by the captioner's or the filter's maximum length
        ("degenerate", pa.bool_()),  # the captioner repeated itself; kept by `without=()` alone
        ("duplicate", pa.bool_()),  # the same text as one before it of this picture; never kept
        ("status", pa.string()),  # success, empty_text, failed_score; failed_to_read: sidecar
        *_SCORES,  # of all filters, as they vote; what the thresholds are held against
        ("filters", pa.list_(pa.struct(_SCORES))),  # of each filter
        ("kept", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the source; a picture's path below its folder; data, not a name
        ("path", pa.string()),  # where it came from: absolute path, URL, or shard and member
        ("shard", pa.int32()),
        ("number", pa.int32()),  # within the shard, from 0
        ("status", pa.string()),  # of the picture
        ("error_message", pa.string()),  # of the picture, or of its text; else empty
        ("width", pa.int32()),  # of the file, in pixels; null where it was not read
        ("height", pa.int32()),
        ("web_texts", pa.list_(pa.string())),  # as they came; several where the source has several
        ("candidates", pa.list_(_CANDIDATE)),
        ("thumbnail", pa.binary()),  # JPEG, of an even spread of the run's pictures; else null
    ]
)


@dataclass(frozen=True)
class Scores:
    """What a filter says of a text and a picture."""

    itm_probability: float | None = None
    itm_logit: float | None = None
    itc_similarity: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One text for one picture; attributes as in `SCHEMA`."""

    source: Source
    text: str
    captioner: int | None = None
    token_ids: tuple[int, ...] = ()
    log_probability: float | None = None
    truncated: bool = False
    degenerate: bool = False
    duplicate: bool = False
    status: Status = Status.SUCCESS
    itm_probability: float | None = None
    itm_logit: float | None = None
    itc_similarity: float | None = None
    filters: tuple[Scores, ...] = ()
    kept: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "token_ids": list(self.token_ids),
            "status": self.status.value,
            "filters": [vars(scores) for scores in self.filters],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Candidate:
        """A candidate of a row that was read; columns that the reader left out get defaults."""
        given = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        given["status"] = Status(given["status"])
        given["token_ids"] = tuple(given.get("token_ids") or ())
        given["filters"] = tuple(Scores(**scores) for scores in given.get("filters") or ())
        return cls(**given)


@dataclass(frozen=True)
class Row:
    """One picture; attributes as in `SCHEMA`. One that could not be read has no candidates."""

    key: str
    path: str
    status: Status
    shard: int = 0
    number: int = 0
    error_message: str = ""
    width: int | None = None
    height: int | None = None
    web_texts: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    thumbnail: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "status": self.status.value,
            "web_texts": list(self.web_texts),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Row:
        """A row that was read; columns that the reader left out get defaults."""
        given = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        given["status"] = Status(given["status"])
        given["web_texts"] = tuple(given.get("web_texts") or ())
        candidates = given.get("candidates") or ()
        given["candidates"] = tuple(Candidate.from_dict(value) for value in candidates)
        return cls(**given)


def committed(folder: Path) -> list[str]:
    """The names of the shards that are complete, as "00000", in order: nothing is opened."""
    marks = (path.name for path in folder.iterdir() if path.name.endswith(MARK))
    return sorted((name.removesuffix(MARK) for name in marks), key=lambda name: (len(name), name))


def read_rows(
    folder: Path, columns: Sequence[str] | None = None, shards: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a run's complete shards as dictionaries, in order, a few in memory at a time.

    Args:
        columns: of `SCHEMA`, those that are wanted; `candidates.list.element.text` is a part of
            one. All where none are given.
        shards: names, those that are wanted; all that are complete where none are given.

    Raises:
        ValueError: where a table is damaged (pyarrow's ArrowInvalid is one).
    """
    for name in committed(folder) if shards is None else shards:
        with pq.ParquetFile(folder / f"{name}.parquet") as table:
            for batch in table.iter_batches(_READ, columns=columns, use_threads=False):
                yield from batch.to_pylist()
