"""Tar shards as img2dataset and webdataset write them; each is a shard of the source."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from blip_fast.data.fetch import open_local, read_small
from blip_fast.data.shardlist import beside, list_shards
from blip_fast.data.tar import TarSample, read_exactly, scan
from blip_fast.data.tarheader import BLOCK, find_header
from blip_fast.data.tars import CAPTION_FIELDS, IMAGE_SUFFIXES
from blip_fast.data.web.pictures import WebPicture, as_text, digest
from blip_fast.images import Status
from blip_fast.images.options import MAX_BYTES

_LONGEST_TEXT = 2**24  # bytes of a text or json; what is longer was not written for a picture
# A picture in one of these is there, though others read the four of IMAGE_SUFFIXES alone.
_SUFFIXES = (*IMAGE_SUFFIXES, "gif", "bmp", "tif", "tiff", "avif", "jfif")


class WebTars:
    """Shards by one word; see `list_shards`."""

    def __init__(self, spec: str | Path) -> None:
        """Find the shards; nothing is opened.

        Raises:
            ValueError: where there are none.
        """
        self.name = str(spec)
        self.shards = list_shards(spec, ".tar")

    @property
    def identity(self) -> str:
        return digest(PurePosixPath(shard).name for shard in self.shards)

    @property
    def count(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.shards)

    def open(self, shard: int) -> WebTar:
        return WebTar(self.shards[shard])

    def check(self) -> None:
        """An open shard stays open, whatever becomes of its name; opening the next will tell."""


class WebTar:
    """An open shard. It gives all that can be read, whatever is wrong with the rest.

    A disk that no longer answers is an OSError, not a picture that cannot be read.
    """

    def __init__(self, name: str) -> None:
        """
        Raises:
            ValueError: where it is no tar at all, as the page that a server gave in its place.
        """
        self.name = name
        self._file = open_local(name)
        weakref.finalize(self, os.close, self._file)
        index = scan(self._file)
        if not index.samples and index.damages and index.damages[0].offset == 0:
            self._refuse_others()
        self._samples = index.samples
        self.losses = [vars(damage) for damage in index.damages]
        told = _told(name)
        self.lost = max(0, told - len(self._samples)) if told is not None else 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> WebPicture:
        sample = self._samples[number]
        problems: list[str] = []
        fields = self._fields(sample, problems)
        texts = self._texts(sample, fields, problems)
        text_failed = bool(problems) and not texts
        suffix = next((s for s in _SUFFIXES if s in sample.files), None)
        image, status = None, Status.FAILED_TO_READ
        if suffix is None:
            held = ", ".join(sample.files)
            problems = [f"no picture has this key; it has {held}{self._damage()}"]
        elif sample.files[suffix][1] > MAX_BYTES:
            problems, status = [f"{sample.files[suffix][1]} bytes"], Status.TOO_LARGE
        else:
            try:
                image, status = self._read(sample, suffix), Status.SUCCESS
            except ValueError as fault:
                problems = [str(fault)]
        path = f"{self.name}/{sample.key}" + (f".{suffix}" if suffix else "")
        key, error = as_text(sample.key), "; ".join(problems)
        return WebPicture(key, path, image, texts, status, error, text_failed, fields)

    def _refuse_others(self) -> None:
        """Raise a ValueError where there is no header of a tar from the first byte to the last."""
        size, start = os.fstat(self._file).st_size, os.pread(self._file, BLOCK, 0)
        if not start.strip(b"\0") or find_header(self._file, 0, size) is not None:
            return
        remedy = "; decompress it" if start.startswith(b"\x1f\x8b") else ""
        raise ValueError(f"{self.name} is not a tar: it begins with {start[:20]!r}{remedy}")

    def _fields(self, sample: TarSample, problems: list[str]) -> dict[str, Any]:
        """What the sample's json says; empty where there is none."""
        if "json" not in sample.files:
            return {}
        try:
            value = json.loads(self._small(sample, "json"))
        except (ValueError, RecursionError) as error:
            problems.append(f"its json: {error}")
            return {}
        return value if isinstance(value, dict) else {}

    def _texts(
        self, sample: TarSample, fields: dict[str, Any], problems: list[str]
    ) -> tuple[str, ...]:
        if "txt" in sample.files:
            try:
                text = self._small(sample, "txt").decode("utf-8-sig")
            except ValueError as error:
                problems.append(f"its text: {error}")
                return ()
            return (text.strip(),)
        found = (fields.get(name) for name in CAPTION_FIELDS)
        return tuple(as_text(text).strip() for text in found if isinstance(text, str))[:1]

    def _small(self, sample: TarSample, suffix: str) -> bytes:
        if sample.files[suffix][1] > _LONGEST_TEXT:
            raise ValueError(f"it has {sample.files[suffix][1]} bytes; at most {_LONGEST_TEXT}")
        return self._read(sample, suffix)

    def _read(self, sample: TarSample, suffix: str) -> bytes:
        return read_exactly(self._file, *sample.files[suffix])

    def _damage(self) -> str:
        """The shard's first damage, which may be why a member is missing."""
        first: Sequence[Any] = self.losses[:1]
        return "".join(f"; the shard is damaged at byte {x['offset']}: {x['what']}" for x in first)


def _told(shard: str) -> int | None:
    """How many samples img2dataset's `00000_stats.json` beside a shard says there are."""
    try:
        value = json.loads(read_small(beside(shard, "_stats.json")) or b"{}")
    except (ValueError, OSError):
        return None
    count = value.get("successes") if isinstance(value, dict) else None
    return count if isinstance(count, int) else None
