"""The files of a shard, all of them or none.

00000.tar          the kept pairs; see `kept`
00000.parquet      one row for every picture attempted; see `rows.SCHEMA`
00000_stats.json   counts and times; written last: the shard is done when it is there

The first two hold no time and no machine: they are the same bytes, whoever writes them and however
often the run was killed before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip_fast.capfilt.jobs import Job
from blip_fast.capfilt.kept import members
from blip_fast.capfilt.rows import MARK, SCHEMA
from blip_fast.data import write_json
from blip_fast.data.tarwrite import TarWriter

_GROUP = 1000  # rows in memory, and in a row group of the table


class ShardWriter:
    """An unfinished shard, in files of the process's own."""

    def __init__(self, output: Path, scratch: Path, name: str) -> None:
        """
        Args:
            output: where the shard will be.
            scratch: a folder on the same disk, of this process alone.
        """
        self.name, self._output = name, output
        self._tar_path, self._table_path = (scratch / f"{name}{x}" for x in (".tar", ".parquet"))
        self._file = self._tar_path.open("wb")
        self._tar = TarWriter(self._file)
        self._table = pq.ParquetWriter(self._table_path, SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, jobs: Iterable[Job]) -> None:
        """Write pictures, in order.

        Raises:
            OSError: where the disk takes no more.
        """
        for job in jobs:
            assert job.row is not None
            for name, data in members(job):
                self._tar.add(name, data)
            self._rows.append(job.row.to_dict())
            if len(self._rows) == _GROUP:
                self._flush()

    def commit(self, stats: dict[str, Any]) -> None:
        """Give the shard its names; its mark last, after all is on the disk."""
        self._flush()
        with self._tar:
            pass  # writes the end
        self._table.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._table_path.open("rb+") as table:
            os.fsync(table.fileno())
        for path in (self._tar_path, self._table_path):
            os.replace(path, self._output / path.name)
        _sync(self._output)
        write_json(self._output / f"{self.name}{MARK}", stats, self._tar_path.parent)
        _sync(self._output)

    def discard(self) -> None:
        """Leave nothing behind; where it was committed, nothing is left to remove."""
        for writer in (self._file, self._table):
            try:
                writer.close()
            except OSError:  # as where the disk is full
                continue
        for path in (self._tar_path, self._table_path):
            path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=SCHEMA)
            self._table.write_table(table)
            self._rows = []


def gallery_places(shard: int, shards: int, pictures: int, gallery: int) -> set[int]:
    """Which pictures of a shard the report shows: about `gallery` of all, evenly spread.

    It depends on the shard alone, so that it is the same whenever the shard is done.
    """
    share = (shard + 1) * gallery // shards - shard * gallery // shards
    share = min(share, pictures)
    return {i * pictures // share for i in range(share)}


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
