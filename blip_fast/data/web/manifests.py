"""JSON manifests that name pictures: BLIP's, COCO's and Karpathy's, lists or JSON lines.

    [{"image" or "url" or "file_name": path or URL, "caption" or "text": text, texts or nothing}]
    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}        COCO
    {"images": [{"filename", "filepath", "sentences": [{"raw"}]}]}                     Karpathy

Rows that name the same picture are one picture with several texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blip_fast.data.files import displayable
from blip_fast.data.folder import is_url
from blip_fast.data.jsonrows import read_json_object, read_json_rows
from blip_fast.data.manifests import CAPTION_FIELDS, IMAGE_FIELDS
from blip_fast.data.packed import PackedRows
from blip_fast.data.roots import below
from blip_fast.data.samples import BadSample
from blip_fast.data.web.pictures import NoDamage, WebPicture, as_text, digest, slices
from blip_fast.images import Status

_Row = tuple[str, list[str], str]  # the picture's path, its texts, what is wrong with them


class WebManifest:
    """The pictures of one manifest, each once, in order of first appearance."""

    def __init__(self, path: Path, shard_size: int, image_root: str | Path | None = None) -> None:
        """Read a manifest.

        Args:
            image_root: what relative paths begin below; the manifest's folder where it is None.

        Raises:
            ValueError: where the file is damaged, of no known kind, or names no picture.
            OSError: where it cannot be read.
        """
        self.name = displayable(path)
        self._root = path.parent if image_root is None else image_root
        hashes: list[bytes] = []
        self._rows = PackedRows(_hashing(_read(path, self.name), hashes))
        if not len(self._rows):
            raise ValueError(f"{self.name} names no pictures")
        self._order, self._starts = _grouped(hashes)
        self._shards = slices(self.count, shard_size)
        self.identity = digest(h.hex() for h in hashes)

    @property
    def count(self) -> int:
        return len(self._starts) - 1

    def __len__(self) -> int:
        return len(self._shards)

    def open(self, shard: int) -> WebManifestShard:
        return WebManifestShard(self, self._shards[shard])

    def check(self) -> None:
        if not is_url(self._root) and not Path(self._root).is_dir():
            raise FileNotFoundError(f"the folder {self._root}, where the pictures are, is gone")

    def picture(self, number: int) -> WebPicture:
        """One of them, with the texts of all rows that name it."""
        places = self._order[self._starts[number] : self._starts[number + 1]]
        rows = [self._rows[int(place)] for place in sorted(places)]
        name = as_text(rows[0][0])
        texts = tuple(as_text(text) for _, some, _ in rows for text in some)
        error = "; ".join(fault for *_, fault in rows if fault)
        if not name:
            key = f"row {int(places[0])}"
            return WebPicture(key, self.name, None, (), Status.FAILED_TO_READ, error)
        image = below(self._root, name)
        path = image if isinstance(image, str) else displayable(image.absolute())
        return WebPicture(name, path, image, texts, error=error, text_failed=bool(error))


class WebManifestShard(NoDamage):
    """Some neighbouring pictures of a manifest."""

    def __init__(self, manifest: WebManifest, numbers: range) -> None:
        self._manifest, self._numbers = manifest, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> WebPicture:
        return self._manifest.picture(self._numbers[number])


def _hashing(rows: Iterator[_Row], hashes: list[bytes]) -> Iterator[_Row]:
    """Give the rows on, and note what tells the picture of each; faulty rows stand alone."""
    for number, row in enumerate(rows):
        name = row[0] or f"\0{number}"
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8)
        hashes.append(digest.digest())
        yield row


def _grouped(hashes: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of rows, those of one picture together, and where each picture's begin.

    Pictures are in order of their first rows. 24 bytes a row, where a dictionary takes 200.
    """
    names = np.frombuffer(b"".join(hashes), dtype="<u8")
    _, first, group, counts = np.unique(
        names, return_index=True, return_inverse=True, return_counts=True
    )
    ranked = np.argsort(first)
    rank = np.empty_like(ranked)
    rank[ranked] = np.arange(len(ranked))
    order = np.argsort(rank[group], kind="stable")
    return order, np.concatenate([[0], np.cumsum(counts[ranked])])


def _read(path: Path, name: str) -> Iterator[_Row]:
    value = read_json_object(path)
    if value is not None and isinstance(value.get("images"), list):
        yield from _coco(value, name) if "annotations" in value else _karpathy(value, name)
        return
    for number, row in enumerate(read_json_rows(path)):
        if isinstance(row, BadSample):
            yield "", [], str(row)
        elif (image := _image(row)) is not None:
            yield image, *_texts(row)
        elif number == 0:  # most likely all rows are like this one
            raise ValueError(
                f"{name}, row 0: {json.dumps(row)[:80]} names no picture; expected "
                f"{', '.join(IMAGE_FIELDS)}"
            )
        else:
            yield "", [], f"{name}, row {number} names no picture"


def _coco(value: dict, name: str) -> Iterator[_Row]:
    try:
        texts: dict[Any, list[Any]] = {image["id"]: [] for image in value["images"]}
        for annotation in value["annotations"]:
            texts.setdefault(annotation["image_id"], []).append(annotation.get("caption"))
        for image in value["images"]:
            yield image["file_name"], *_texts({"caption": texts[image["id"]]})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name} is not a COCO file: {type(error).__name__} {error}") from None


def _karpathy(value: dict, name: str) -> Iterator[_Row]:
    try:
        for image in value["images"]:
            path = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            yield path, *_texts({"caption": [s["raw"] for s in image.get("sentences", [])]})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name} is not a Karpathy file: {type(error).__name__} {error}") from None


def _image(row: Any) -> str | None:
    found = (row.get(name) for name in IMAGE_FIELDS) if isinstance(row, dict) else ()
    return next((value for value in found if isinstance(value, str) and value), None)


def _texts(row: dict) -> tuple[list[str], str]:
    """The texts of a row, and what is wrong with those that are none."""
    value: Any = next((row[name] for name in CAPTION_FIELDS if row.get(name) is not None), [])
    values = value if isinstance(value, list) else [value]
    bad = [json.dumps(v)[:60] for v in values if not isinstance(v, str)]
    fault = f"the caption {', '.join(bad)} is not a text" if bad else ""
    return [v.strip() for v in values if isinstance(v, str)], fault
