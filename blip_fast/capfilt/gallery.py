"""Which pictures of a run its report shows, as values for the page's script.

Of a large run not all fit a page: an even spread of them does, with those whose texts match worst
and best, and those that have a thumbnail.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from blip_fast.capfilt.columns import FLAGS, Texts
from blip_fast.capfilt.labels import Labels
from blip_fast.images import Status

MOST = 10_000  # pictures in a page: of about 5 MB, thumbnails aside
_EXTREMES = 1_000  # of these the worst, and as many best ones
_THUMBNAILS = 400  # of 7 kB each, so 4 MB of a page at most
_TEXT_SHOWN = 400  # characters
_ROWS = 1024
_COLUMNS = [
    "key", "path", "status", "error_message", "width", "height", "thumbnail",
    *(
        f"candidates.list.element.{name}"
        for name in (
            "source", "captioner", "text", "log_probability", "status", "kept", "itm_probability",
            "itc_similarity", "filters", *FLAGS,
        )
    ),
]  # fmt: skip


class Extremes:
    """The rows whose texts have the lowest and the highest ITM probabilities, met in passing."""

    def __init__(self, most: int = _EXTREMES) -> None:
        self._most = most
        self._low = self._high = (np.zeros(0), np.zeros(0, np.int64))

    def watch(self, batches: Iterable[Texts]) -> Iterator[Texts]:
        """Give batches on, and note."""
        for texts in batches:
            scored = np.isfinite(texts.itm)
            scores, rows = texts.itm[scored], texts.row[scored]
            self._low = self._joined(self._low, scores, rows, 1)
            self._high = self._joined(self._high, scores, rows, -1)
            yield texts

    @property
    def rows(self) -> np.ndarray:
        """int64, in no order."""
        return np.concatenate([self._low[1], self._high[1]])

    def _joined(
        self, held: tuple[np.ndarray, np.ndarray], scores: np.ndarray, rows: np.ndarray, sign: int
    ) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = np.concatenate([held[0], scores]), np.concatenate([held[1], rows])
        first = np.argsort(sign * scores, kind="stable")[: self._most]
        return scores[first], rows[first]


def choose(
    folder: Path, shards: Sequence[str], rows: int, extremes: np.ndarray, most: int = MOST
) -> np.ndarray:
    """The places of the rows to show among those of some shards, in order: int64, about `most`."""
    if rows <= most:
        return np.arange(rows)
    places = {*extremes.tolist(), *_with_thumbnail(folder, shards)}
    spread = max(0, most - len(places))
    return np.array(sorted(places | {i * rows // spread for i in range(spread)}), np.int64)


def cards(
    folder: Path, shards: Sequence[str], places: np.ndarray, labels: Labels | None = None
) -> Iterator[dict[str, Any]]:
    """Rows as the script takes them, in order; see `card`."""
    first, thumbnails = 0, 0
    for name in shards:
        with pq.ParquetFile(folder / f"{name}.parquet") as table:
            for batch in table.iter_batches(_ROWS, columns=_COLUMNS, use_threads=False):
                low, high = np.searchsorted(places, [first, first + len(batch)])
                if high > low:
                    for row in batch.take(places[low:high] - first).to_pylist():
                        thumbnails += bool(row["thumbnail"])
                        yield card(row, labels, thumbnails <= _THUMBNAILS)
                first += len(batch)


def card(row: Mapping[str, Any], labels: Labels | None, picture: bool = True) -> dict[str, Any]:
    """A row in short names, without what is empty.

    k key, p path where it is not the key, s status where it is not success, e error, w and h width
    and height, j JPEG in base 64, t texts, each with: w 1 where it is of the web, x text, d
    decision ("kept", "rejected" or a status), m and c ITM and ITC, l log-probability, n captioner,
    f flags, r whether it is true, v what each of several filters said.
    """
    failed = row["status"] != Status.SUCCESS.value
    jpeg = row["thumbnail"] if picture else None
    value = {
        "k": _cut(row["key"]),
        "p": _cut(row["path"]) if row["path"] != row["key"] else "",
        "s": row["status"] if failed else "",
        "e": _cut(row["error_message"] or ""),
        "w": row["width"],
        "h": row["height"],
        "j": base64.b64encode(jpeg).decode("ascii") if jpeg else "",
        "t": [_text(row["key"], text, labels) for text in row["candidates"] or ()],
    }
    return {name: held for name, held in value.items() if held not in ("", None)}


def _text(key: str, text: Mapping[str, Any], labels: Labels | None) -> dict[str, Any]:
    decided = "kept" if text["kept"] else "rejected"
    true = None if labels is None else labels.of(key, text["source"], text["text"])
    filters = text["filters"] or ()
    value = {
        "w": 1 if text["source"] == "web" else None,
        "x": _cut(text["text"]),
        "d": decided if text["status"] == Status.SUCCESS.value else text["status"],
        "m": _rounded(text["itm_probability"]),
        "c": _rounded(text["itc_similarity"]),
        "l": _rounded(text["log_probability"], 2),
        "n": text["captioner"],
        "f": [flag for flag in FLAGS if text[flag]] or None,
        "r": None if true is None else int(true),
        "v": [_rounded(said["itm_probability"]) for said in filters] if len(filters) > 1 else None,
    }
    return {name: held for name, held in value.items() if held is not None}


def _with_thumbnail(folder: Path, shards: Sequence[str]) -> list[int]:
    """The places of the first rows that have one."""
    found: list[int] = []
    first = 0
    for name in shards:
        with pq.ParquetFile(folder / f"{name}.parquet") as table:
            for batch in table.iter_batches(_ROWS, columns=["thumbnail"], use_threads=False):
                valid = batch.column("thumbnail").is_valid().to_numpy(zero_copy_only=False)
                found += (np.flatnonzero(valid) + first).tolist()
                first += len(batch)
        if len(found) >= _THUMBNAILS:
            break
    return found[:_THUMBNAILS]


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[:_TEXT_SHOWN] + " …"
