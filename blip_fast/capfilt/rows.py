"""What CapFilt records: one row for every picture it attempted, with every candidate text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from blip_fast.images import Status

Source = Literal["web", "synthetic"]
SOURCES: tuple[Source, ...] = ("web", "synthetic")

# `status` is the vocabulary of blip_fast.images.Status. Scores are null where there are none.
_CANDIDATE = pa.struct(
    [
        ("source", pa.string()),  # "web" or "synthetic"
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),  # as written: [DEC], prompt, text, [SEP]; empty: web
        ("log_probability", pa.float32()),  # natural, of the caption after the prompt; null: web
        ("truncated", pa.bool_()),  # cut by the captioner's or the filter's maximum length
        ("status", pa.string()),  # success, empty_text, failed_score; failed_to_read: sidecar
        ("itm_probability", pa.float32()),  # softmax; what the threshold is held against
        ("itm_logit", pa.float32()),  # of "matched"
        ("itc_similarity", pa.float32()),  # cosine
        ("kept", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # path below the source folder
        ("path", pa.string()),  # absolute
        ("status", pa.string()),  # of the picture
        ("error_message", pa.string()),  # of the picture, or of its sidecar; else empty
        ("width", pa.int32()),  # of the file, in pixels; null where it was not read
        ("height", pa.int32()),
        ("web_text", pa.string()),  # null without a sidecar
        ("candidates", pa.list_(_CANDIDATE)),
    ]
)


@dataclass(frozen=True)
class Candidate:
    """One text for one picture; attributes as in `SCHEMA`."""

    source: Source
    text: str
    token_ids: tuple[int, ...] = ()
    log_probability: float | None = None
    truncated: bool = False
    status: Status = Status.SUCCESS
    itm_probability: float | None = None
    itm_logit: float | None = None
    itc_similarity: float | None = None
    kept: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "token_ids": list(self.token_ids), "status": self.status.value}


@dataclass(frozen=True)
class Row:
    """One picture; attributes as in `SCHEMA`. One that could not be read has no candidates."""

    key: str
    path: str
    status: Status
    error_message: str = ""
    width: int | None = None
    height: int | None = None
    web_text: str | None = None
    candidates: tuple[Candidate, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        candidates = [candidate.to_dict() for candidate in self.candidates]
        return {**vars(self), "status": self.status.value, "candidates": candidates}


def kept_pairs(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The kept texts in the shape of BLIP's training manifests, with their origin and score."""
    return [
        {
            "image": row.path,
            "caption": candidate.text,
            "source": candidate.source,
            "itm": candidate.itm_probability,
        }
        for row in rows
        for candidate in row.candidates
        if candidate.kept
    ]
