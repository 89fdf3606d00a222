"""The pictures of kept pairs once more: from a run's own shards, or else from its source."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from blip_fast.capfilt.jobs import Job
from blip_fast.capfilt.kept import Members, members, pair_name
from blip_fast.capfilt.rows import Row
from blip_fast.data.tar import read_exactly, scan
from blip_fast.data.web import WebPicture, WebShard, open_web
from blip_fast.images import ImageError, read_bytes
from blip_fast.images.options import MAX_BYTES


class KeptAgain:
    """One shard's pictures; a context manager. Its source is opened where one is needed of it."""

    def __init__(self, run: Path, name: str, settings: Mapping[str, Any]) -> None:
        """
        Args:
            name: of the shard.
            settings: of the run, which say what its source was.
        """
        self._tar_path, self._name, self._settings = run / f"{name}.tar", name, settings
        self._file: int | None = None
        self._shard: WebShard | None = None
        self._places: dict[str, dict[str, tuple[int, int]]] = {}

    def __enter__(self) -> KeptAgain:
        if self._tar_path.exists():
            self._file = os.open(self._tar_path, os.O_RDONLY)
            self._places = {sample.key: sample.files for sample in scan(self._file).samples}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    def members(
        self, rows: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[Mapping[str, Any], Members | None]]:
        """Each row with its kept pairs as members of a tar; None where its picture is gone.

        Raises:
            ValueError: where the source is needed and cannot be opened.
        """
        for value in rows:
            row = Row.from_dict(value)
            picture = self._of_run(row) or self._of_source(row)
            if picture is None:
                yield value, None
                continue
            job = Job(row.number, _NO_SHARD, picture, row=row)
            job.data = picture.image if isinstance(picture.image, bytes) else None
            yield value, members(job)

    def _of_run(self, row: Row) -> WebPicture | None:
        """A picture of which a text was kept before."""
        for place in range(len(row.candidates)):
            files = self._places.get(pair_name(row.shard, row.number, place))
            if files and self._file is not None:
                about = json.loads(read_exactly(self._file, *files["json"]))
                suffix = next(s for s in files if s not in ("txt", "json"))
                data = read_exactly(self._file, *files[suffix])
                return WebPicture(row.key, row.path, data, extra=about["original"])
        return None

    def _of_source(self, row: Row) -> WebPicture | None:
        shard = self._source()
        if row.number >= len(shard):
            return None
        picture = shard[row.number]
        if picture.image is None or picture.key != row.key:
            return None
        try:
            data = read_bytes(picture.image, MAX_BYTES)
        except ImageError:
            return None
        return WebPicture(row.key, row.path, data, extra=picture.extra)

    def _source(self) -> WebShard:
        if self._shard is None:
            asked = self._settings
            try:
                source = open_web(
                    asked["source"],
                    asked["shard_size"],
                    image_root=asked["image_root"],
                    recursive=asked["recursive"],
                )
                self._shard = source.open(int(self._name))
            except (ValueError, OSError, IndexError) as error:
                raise ValueError(
                    f"pictures of shard {self._name} of which no text was kept before must come "
                    f"from the source {asked['source']}, which cannot be opened: {error}. Bring it "
                    "back, or write the view without tars"
                ) from error
        return self._shard


class _NoShard:
    """Jobs here have their bytes already."""

    losses = ()
    lost = 0

    def __len__(self) -> int:
        return 0

    def __getitem__(self, number: int) -> WebPicture:
        raise IndexError(number)


_NO_SHARD = _NoShard()
