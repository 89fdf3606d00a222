"""What people, or a made world, say of texts: whether each is true of its picture.

Labels are rows of a JSON list, of JSON lines or of a parquet table, {key, source, text, label}, of
which key and label must be there; the tables that `blip-fast scenes make` writes are such, and so
are the json members of its tar shards, with a `verdict` for a label: one that is not "true" counts
as false, because a text that says nothing of its picture should not be kept. A label without
source and text is of the picture's web text. JSON may also be an object, {key: label} or
{key: {label, text, source}}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_fast.capfilt.columns import FLAGS
from blip_fast.capfilt.rows import committed
from blip_fast.data.files import displayable
from blip_fast.data.jsonrows import next_character, open_utf8, read_json_rows
from blip_fast.data.samples import BadSample
from blip_fast.data.shardlist import list_shards

_TEXT = ("text", "caption")  # names of a field, in order of preference
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")
_COLUMNS = [
    "key",
    *(
        f"candidates.list.element.{c}"
        for c in ("source", "text", "status", *FLAGS, "itm_probability", "itc_similarity")
    ),
]


@dataclass
class Labels:
    """Whether texts are true, found by picture.

    Attributes:
        name: where they come from.
        ignored: labels that are neither true nor false, as "unsure".
    """

    name: str = "labels"
    ignored: int = 0
    _of: dict[str, dict[tuple[str | None, str | None], bool]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def keys(self) -> list[str]:
        return list(self._of)

    def add(self, key: str, source: str | None, text: str | None, label: object) -> None:
        """Note one; `label` may be a bool, 0 or 1, or a word for it."""
        word = str(label).strip().lower()
        if word not in _TRUE and word not in _FALSE:
            self.ignored += 1
            return
        if source is None and text is None:
            source = "web"
        own = None if text is None else text.strip()
        self._of.setdefault(key, {})[source, own] = word in _TRUE

    def of(self, key: str, source: str, text: str) -> bool | None:
        """Whether a text is true of a picture; None where nothing is said."""
        said = self._of.get(key)
        if not said:
            return None
        own = text.strip()
        for name in ((source, own), (None, own), (source, None)):
            if name in said:
                return said[name]
        return None


@dataclass(frozen=True, eq=False)
class Judged:
    """The labelled texts of a run.

    Attributes:
        true, web, able: bool [N]; `able`: a text that a threshold decides on. Others have no score
            or a flag that speaks against them, and are never kept.
        itm, itc: float64 [N].
    """

    true: np.ndarray
    web: np.ndarray
    able: np.ndarray
    itm: np.ndarray
    itc: np.ndarray

    def __len__(self) -> int:
        return len(self.true)


def read_labels(spec: str | Path) -> Labels:
    """Read labels.

    Args:
        spec: a .json, .jsonl, .parquet or .tar file, or several of the last two as `list_shards`
            takes them; a folder of parquet tables or tar shards.

    Raises:
        ValueError: where there are none, or a row has no key.
        OSError: where a file cannot be read.
    """
    labels = Labels(displayable(spec))
    for number, row in enumerate(_rows(str(spec))):
        if isinstance(row, BadSample):
            raise ValueError(str(row))
        label = _label(row) if isinstance(row, Mapping) else None
        if label is None or row.get("key") is None:
            raise ValueError(
                f"{labels.name}, row {number}: a label needs the fields key and label (or "
                f"verdict), and may have source and text; this is {str(row)[:80]}"
            )
        labels.add(str(row["key"]), row.get("source"), _first(row, _TEXT), label)
    if not len(labels):
        raise ValueError(f"{labels.name} holds no label that is true or false")
    return labels


def judge(folder: Path, labels: Labels, without: Sequence[str] = ()) -> Judged:
    """The labelled texts of a run with their scores; of equal texts of a picture the first.

    Args:
        without: flags of texts that are never kept.

    Raises:
        ValueError: where no label is of a text of this run.
    """
    wanted = pa.array(labels.keys, pa.string())
    found = [
        (said, c["source"] == "web", _able(c, without), _number(c[_ITM]), _number(c[_ITC]))
        for row in _labelled(folder, wanted)
        for c in row["candidates"] or ()
        if not c["duplicate"]
        and (said := labels.of(row["key"], c["source"], c["text"])) is not None
    ]
    if not found:
        raise ValueError(
            f"none of the labels of {labels.name} is of a text in {displayable(folder)}; a key is "
            f"like {labels.keys[0]!r} there and like {_any_key(folder)!r} here"
        )
    true, web, able, itm, itc = map(np.array, zip(*found, strict=True))
    return Judged(true, web, able, itm, itc)


_ITM, _ITC = "itm_probability", "itc_similarity"


def _able(candidate: Mapping[str, Any], without: Sequence[str]) -> bool:
    scored = candidate["status"] == "success" and candidate["itm_probability"] is not None
    return scored and not any(candidate[flag] for flag in without)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _labelled(folder: Path, wanted: pa.Array) -> Iterator[dict[str, Any]]:
    """The rows whose keys are in a list; the others are not turned into Python's objects."""
    for name in committed(folder):
        with pq.ParquetFile(folder / f"{name}.parquet") as table:
            for batch in table.iter_batches(8192, columns=_COLUMNS, use_threads=False):
                chosen = batch.filter(pc.is_in(batch.column("key"), value_set=wanted))
                yield from chosen.to_pylist()


def _any_key(folder: Path) -> str | None:
    for name in committed(folder):
        with pq.ParquetFile(folder / f"{name}.parquet") as table:
            for batch in table.iter_batches(1, columns=["key"], use_threads=False):
                return batch.column("key")[0].as_py()
    return None


def _label(row: Mapping[str, Any]) -> Any:
    verdict = row.get("verdict")
    return row.get("label") if verdict is None else verdict == "true"


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _rows(spec: str) -> Iterator[Any]:
    if spec.endswith((".json", ".jsonl")):
        yield from _json_rows(Path(spec))
        return
    kind = ".tar" if spec.endswith(".tar") or (os.path.isdir(spec) and _lacks_tables(spec)) else ""
    for shard in list_shards(spec, kind or ".parquet"):
        yield from _tar_rows(shard) if kind else _table_rows(shard)


def _lacks_tables(folder: str) -> bool:
    return not any(name.endswith(".parquet") for name in os.listdir(folder))


def _json_rows(path: Path) -> Iterator[Any]:
    with open_utf8(path) as file:
        is_object = next_character(file) == "{"
        whole = _parsed("{" + file.read()) if is_object else None
    if isinstance(whole, dict) and "key" not in whole:
        for key, value in whole.items():
            yield {"key": key, **(value if isinstance(value, dict) else {"label": value})}
    else:
        yield from read_json_rows(path)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # JSON lines
        return None


def _table_rows(shard: str) -> Iterator[Any]:
    with pq.ParquetFile(shard) as table:
        names = {"key", "source", "label", "verdict", *_TEXT} & set(table.schema_arrow.names)
        for batch in table.iter_batches(columns=sorted(names), use_threads=False):
            yield from batch.to_pylist()


def _tar_rows(shard: str) -> Iterator[Any]:
    """What the json members of a shard say; those without a label are passed over."""
    from blip_fast.data.fetch import open_local
    from blip_fast.data.tar import read_exactly, scan

    file = open_local(shard)
    try:
        for sample in scan(file).samples:
            if "json" in sample.files:
                value = _parsed(
                    read_exactly(file, *sample.files["json"]).decode("utf-8", "replace")
                )
                if isinstance(value, dict) and _label(value) is not None:
                    yield {**value, "key": sample.key}
    finally:
        os.close(file)
