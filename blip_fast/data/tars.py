"""Samples of tar shards, as webdataset and img2dataset write them."""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from blip_fast.data.fetch import open_local, read_small
from blip_fast.data.manifests import CAPTION_FIELDS
from blip_fast.data.samples import BadSample, Sample, check_text
from blip_fast.data.shardlist import beside, list_shards
from blip_fast.data.tar import TarIndex, TarSample, read_exactly, scan
from blip_fast.images import Status
from blip_fast.images.options import MAX_BYTES

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")  # in order of preference
_SHOWN = 3  # damages of a shard that a message repeats

_log = logging.getLogger(__name__)


class TarSource:
    """Tar shards: pictures with `.txt`, or `.json` whose caption or text it is."""

    def __init__(self, spec: str | Path) -> None:
        """Find the shards; see `list_shards` for what may be given. Nothing is opened.

        Raises:
            ValueError: where there are none.
        """
        self.name = str(spec)
        self.shards = list_shards(spec, ".tar")

    @cached_property
    def counts(self) -> Sequence[int]:
        """Samples of each shard: as img2dataset's `00000_stats.json` or webdataset's `sizes.json`
        beside it says, and where there is neither, counted."""
        sizes: dict[str, dict[str, Any]] = {}
        told = ((shard, _told(shard, sizes)) for shard in self.shards)
        return [_counted(shard) if count is None else count for shard, count in told]

    def open(self, shard: int) -> TarShard:
        """Open a shard for reading; one that lies elsewhere is fetched.

        Raises:
            OSError: where it cannot be read.
        """
        return TarShard(self.shards[shard], self.counts[shard])


class TarShard:
    """An open shard. What is wrong with it is logged once, when it is opened."""

    def __init__(self, name: str, count: int) -> None:
        """
        Args:
            count: how many samples there should be.
        """
        self.name = name
        self._file = open_local(name)
        weakref.finalize(self, os.close, self._file)
        index = scan(self._file)
        self._count = count
        self._keys = [sample.key for sample in index.samples]
        self._images = _places(index.samples, IMAGE_SUFFIXES)
        self._texts = _places(index.samples, ("txt",))
        self._jsons = _places(index.samples, ("json",))
        self._damage = _describe(index, count)
        if self._damage:
            _log.warning("%s: %s", name, self._damage)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < self._count:
            raise IndexError(f"sample {number} of {self._count}")
        if number >= len(self._keys):
            raise BadSample(f"{self.name}, sample {number} is not there; {self._damage}")
        key = self._keys[number]
        return Sample(
            key=f"{PurePosixPath(self.name).name}/{key}",
            images=(self._read(self._images[number], key, "picture"),),
            text=check_text(self._text(number, key), f"{self.name}, {key}"),
            image_id=f"{self.name}/{key}",
        )

    def _text(self, number: int, key: str) -> str:
        try:
            if self._texts[number][0] >= 0:
                return self._read(self._texts[number], key, "text").decode("utf-8-sig")
            fields = json.loads(self._read(self._jsons[number], key, "text"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise BadSample(f"{self.name}, {key}: the text: {error}") from error
        texts = [fields.get(name) for name in CAPTION_FIELDS] if isinstance(fields, dict) else []
        for text in texts:
            if isinstance(text, str):
                return text
        raise BadSample(f"{self.name}, {key}: neither caption nor text is in its json")

    def _read(self, place: np.ndarray, key: str, what: str) -> bytes:
        offset, size = place.tolist()
        if offset < 0:
            raise BadSample(f"{self.name}, {key} has no {what}; {self._damage}".removesuffix("; "))
        if size > MAX_BYTES:
            raise BadSample(f"{self.name}, {key}: the {what} has {size} bytes", Status.TOO_LARGE)
        try:
            return read_exactly(self._file, offset, size)
        except (ValueError, OSError) as error:
            raise BadSample(f"{self.name}, {key}: {error}") from error


def _places(samples: Sequence[TarSample], suffixes: Sequence[str]) -> np.ndarray:
    """int64 [samples, 2]: offset and size of the first suffix that is there; -1 where none is."""
    absent = (-1, -1)
    found = [next((s.files[x] for x in suffixes if x in s.files), absent) for s in samples]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _describe(index: TarIndex, count: int) -> str:
    """What is wrong with a shard, in one line; empty where nothing is."""
    parts = [str(damage) for damage in index.damages[:_SHOWN]]
    if len(index.damages) > _SHOWN:
        parts.append(f"{len(index.damages) - _SHOWN} more")
    found = len(index.samples)
    if found < count:
        parts.append(f"{count - found} of {count} samples are lost")
    if found > count:
        parts.append(f"it holds {found} samples, {found - count} more than counted, left out")
    return "; ".join(parts)


def _told(shard: str, sizes: dict[str, dict[str, Any]]) -> int | None:
    """The count that a file beside a shard gives; None where none does."""
    stats = _json(beside(shard, "_stats.json"))
    folder, _, base = shard.rpartition("/")
    path = f"{folder}/sizes.json" if folder else "sizes.json"
    if "successes" in stats:
        count = stats["successes"]
    else:
        if path not in sizes:
            sizes[path] = _json(path)
        count = sizes[path].get(base)
    return count if isinstance(count, int) and count >= 0 else None


def _json(path: str) -> dict[str, Any]:
    """A small JSON object, empty where there is none that can be read."""
    try:
        value = json.loads(read_small(path) or b"{}")
    except (ValueError, OSError) as error:
        _log.warning("%s is left aside: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}


def _counted(shard: str) -> int:
    file = open_local(shard)
    try:
        return len(scan(file).samples)
    finally:
        os.close(file)
