"""A run decided anew with other thresholds: its tables rewritten, and its kept pairs if wanted.

A view is a folder like a run's: `NNNNN.parquet` with the new decisions, marks, totals, report, and
`kept.jsonl`, the kept pairs as a training manifest, of pictures that are files or URLs. No model
and no picture takes part. With `tars` the kept pairs are written as shards, too: a picture of which
a text was kept before comes from the run's own shards, another is read again from the run's source.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_fast.capfilt.columns import Texts, texts_of
from blip_fast.capfilt.count import passes_itc
from blip_fast.capfilt.decide import Flag
from blip_fast.capfilt.keptagain import KeptAgain
from blip_fast.capfilt.labels import Labels
from blip_fast.capfilt.ledger import RUN, Ledger, clear
from blip_fast.capfilt.options import check_flags
from blip_fast.capfilt.report import write_report
from blip_fast.capfilt.rows import MARK, SCHEMA, SOURCES, committed
from blip_fast.capfilt.summary import TOTALS, totals
from blip_fast.capfilt.tune import require_run
from blip_fast.data import displayable, replacing, write_json
from blip_fast.data.tarwrite import TarWriter

MANIFEST = "kept.jsonl"
# A picture within a tar, a table or a `datasets.Dataset` has no path that a manifest could name.
_WITHIN = re.compile(r"\.tar/|\.parquet/\d+$|^row/\d+$")
_COLUMN = SCHEMA.get_field_index("candidates")


@dataclass(frozen=True)
class Rule:
    """What decides: a text is kept where its scores are at least these and no flag speaks
    against it."""

    threshold: float
    itc_threshold: float | None = None
    without: tuple[Flag, ...] = ("degenerate",)

    def __post_init__(self) -> None:
        check_flags(self.without)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is a probability; it must be in [0, 1]")
        if self.itc_threshold is not None and not -1 <= self.itc_threshold <= 1:
            raise ValueError(
                f"itc_threshold {self.itc_threshold} is a cosine; it must be in [-1, 1]"
            )

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "without": list(self.without)}

    def keeps(self, texts: Texts) -> np.ndarray:
        """bool [N]; the same that `decide` says of each text."""
        able = texts.able(self.without)
        with np.errstate(invalid="ignore"):  # comparisons with NaN
            return able & (texts.itm >= self.threshold) & passes_itc(texts.itc, self.itc_threshold)


def write_view(
    run: Path,
    output: Path,
    rule: Rule,
    *,
    tars: bool = False,
    overwrite: bool = False,
    labels: Labels | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write a run's folder anew under another rule; the same call goes on where one was stopped.

    Args:
        run: a complete run.
        tars: write the kept pairs as tar shards, too.
        overwrite: replace another view in `output`.
        labels: for its report.
        progress: called with the number of pictures just done.

    Returns:
        the totals, as `summary.totals` has them, with `gone`: texts that are not kept because
        their pictures cannot be read any more, and `listed`: pairs in `kept.jsonl`.

    Raises:
        ValueError: where `run` is not complete, `output` holds something else, or the source, of
            which pictures are needed, cannot be opened.
    """
    require_run(run)
    told = _totals_of(run)
    if output.resolve() == run.resolve():
        raise ValueError(f"{displayable(output)} is the run itself; give another output folder")
    if overwrite:
        clear(output, (TOTALS, MANIFEST, "report.html"))
    names = committed(run)
    with Ledger(output, {**_identity(run), **rule.to_dict(), "tars": tars}) as ledger:
        for name in ledger.take(int(name) for name in names):
            shard = _Shard(run, output, ledger.scratch, name, rule)
            count = shard.write(KeptAgain(run, name, told["settings"]) if tars else None)
            ledger.drop(name)
            if progress is not None:
                progress(count)
    settings = {**told["settings"], **rule.to_dict(), "view_of": displayable(run.resolve())}
    stats = totals(output, settings, told["models"])
    stats["gone"] = sum(_mark(output, name).get("gone", 0) for name in committed(output))
    stats["listed"] = _write_manifest(output)
    write_report(output, labels, stats)
    write_json(output / TOTALS, stats)
    return stats


class _Shard:
    """One shard of a view, in files of the process's own until it is whole."""

    def __init__(self, run: Path, output: Path, scratch: Path, name: str, rule: Rule) -> None:
        self._run, self._output, self._scratch = run, output, scratch
        self._name, self._rule = name, rule
        self._counts = {source: [0, 0] for source in SOURCES}
        self._pairs = self._gone = 0

    def write(self, again: KeptAgain | None) -> int:
        """Write and commit it; the number of its pictures."""
        table_path = self._scratch / f"{self._name}.parquet"
        tar_path = self._scratch / f"{self._name}.tar"
        with pq.ParquetFile(self._run / f"{self._name}.parquet") as table:
            count = table.metadata.num_rows
            with pq.ParquetWriter(table_path, SCHEMA, compression="zstd") as writer:
                if again is None:
                    self._decide_all(table, writer, None, again)
                else:
                    with again, tar_path.open("wb") as file, TarWriter(file) as tar:
                        self._decide_all(table, writer, tar, again)
        mark = self._stats()
        for path in (tar_path, table_path) if again is not None else (table_path,):
            with path.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(path, self._output / path.name)
        write_json(self._output / f"{self._name}{MARK}", mark, self._scratch)
        return count

    def _decide_all(
        self,
        table: pq.ParquetFile,
        writer: pq.ParquetWriter,
        tar: TarWriter | None,
        again: KeptAgain | None,
    ) -> None:
        for group in range(table.num_row_groups):
            for batch in table.read_row_group(group).combine_chunks().to_batches():
                candidates = batch.column(_COLUMN)
                texts = texts_of(candidates)
                kept = self._rule.keeps(texts)
                if tar is not None and again is not None:
                    rows = decided(batch, kept).take(np.unique(texts.row[kept])).to_pylist()
                    for row, members in again.members(rows):
                        if members is None:
                            lost = kept & (texts.row == _place(batch, row))
                            self._gone += int(lost.sum())
                            kept &= ~lost
                        for name, data in members or ():
                            tar.add(name, data)
                self._count(texts, kept)
                writer.write_batch(decided(batch, kept))

    def _count(self, texts: Texts, kept: np.ndarray) -> None:
        self._pairs += int(kept.sum())
        for source, own in (("web", texts.web), ("synthetic", ~texts.web)):
            self._counts[source][0] += int(own.sum())  # type: ignore[index]
            self._counts[source][1] += int((own & kept).sum())  # type: ignore[index]

    def _stats(self) -> dict[str, Any]:
        """The run's mark, with what is decided otherwise."""
        mark = _mark(self._run, self._name)
        for source, (count, kept) in self._counts.items():
            share = round(1 - kept / count, 4) if count else None
            mark["texts"][source] |= {"kept": kept, "dropped_share": share}
        return {**mark, "successes": self._pairs, "gone": self._gone}


def decided(batch: pa.RecordBatch, kept: np.ndarray) -> pa.RecordBatch:
    """Rows of `SCHEMA` with other decisions: bool [N], one for each of their texts."""
    candidates = batch.column(_COLUMN)
    texts = pc.list_flatten(candidates)
    fields = list(texts.type)
    children = [
        pa.array(kept) if field.name == "kept" else texts.field(i) for i, field in enumerate(fields)
    ]
    lengths = pc.fill_null(pc.list_value_length(candidates), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    struct = pa.StructArray.from_arrays(children, fields=fields)
    column = pa.ListArray.from_arrays(offsets, struct, type=SCHEMA.field(_COLUMN).type)
    columns = [column if i == _COLUMN else batch.column(i) for i in range(batch.num_columns)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _place(batch: pa.RecordBatch, row: Mapping[str, Any]) -> int:
    """Where a row lies in its batch."""
    return pc.index(batch.column("number"), row["number"]).as_py()


def _totals_of(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / TOTALS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{displayable(run)} has no {TOTALS} that can be read, so the run is not complete; "
            "finish it with `blip-fast capfilt` first"
        ) from None


def _identity(run: Path) -> dict[str, Any]:
    """What tells one run from another, however its folder is called."""
    try:
        asked = (run / RUN).read_bytes()
    except FileNotFoundError:
        asked = b""
    marks = "".join(f"{name}:{_mark(run, name)['end_time']}" for name in committed(run))
    return {"view_of": hashlib.sha256(asked + marks.encode()).hexdigest()}


def _mark(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}{MARK}").read_text(encoding="utf-8"))


def _write_manifest(output: Path) -> int:
    """The kept pairs as JSON lines that `blip-fast train` reads; how many they are."""
    count = 0
    with replacing(output / MANIFEST) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row, text in _kept(output):
            if _WITHIN.search(row["path"]):
                continue
            count += 1
            value = {
                "image": row["path"],
                "caption": text["text"],
                "key": row["key"],
                "source": text["source"],
                "itm": text["itm_probability"],
            }
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
    return count


def _kept(output: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    parts = ("source", "text", "itm_probability", "kept")
    columns = ["key", "path", *(f"candidates.list.element.{part}" for part in parts)]
    for name in committed(output):
        with pq.ParquetFile(output / f"{name}.parquet") as table:
            for batch in table.iter_batches(8192, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    yield from ((row, text) for text in row["candidates"] if text["kept"])
