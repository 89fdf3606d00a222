"""The kept texts once more, in the shapes that other tools read: files beside pictures, and COCO.

They are made from the tables when a run is complete, a few rows in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from blip_fast.capfilt.kept import pair_name
from blip_fast.capfilt.rows import read_rows
from blip_fast.data import displayable, replacing

COCO = "kept_coco.json"
SIDECARS = "sidecars"

_COLUMNS = ["key", "path", "shard", "number", "width", "height"]
_KEPT = ["source", "text", "itm_probability", "kept"]


def write_coco(output: Path, scratch: Path) -> Path:
    """Write the kept pairs as COCO annotations.

    `file_name` is a path, a URL, or a shard of the run and the sample in it.

    Args:
        scratch: a folder on the same disk for unfinished files.

    Returns:
        the file.
    """
    target = output / COCO
    images = (_image(n, row) for n, row in enumerate(_kept_rows(output)))
    with replacing(target, scratch=scratch) as draft, draft.open("w", encoding="utf-8") as file:
        file.write('{"images": [\n')
        _write_list(file, images)
        file.write('\n], "annotations": [\n')
        _write_list(file, _annotations(output))
        file.write("\n]}\n")
    return target


def write_sidecars(output: Path, scratch: Path) -> Path:
    """Write the kept texts of each picture to a file `NAME.txt`, one a line, the best first.

    Names are those of the pictures, below one folder, as the source has them. A key that is no
    plain relative path is data and becomes no name: such a picture's file is called after its
    shard and number. So is that of a second picture that would have the same file, as a.jpg and
    a.png.

    Args:
        scratch: a folder on the same disk for unfinished files.

    Returns:
        the folder.
    """
    folder = output / SIDECARS
    taken: set[int] = set()  # hashes: a name takes a hundred bytes, and there may be millions
    for row in _kept_rows(output):
        texts = sorted(row["kept"], key=lambda c: -c["itm_probability"])
        name = safe_name(row["key"])
        folded = hash(os.path.normcase(name).casefold())
        if not name or folded in taken:
            name = f"{row['shard']:05d}_{row['number']:05d}.txt"
        taken.add(folded)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(candidate["text"].split()) + "\n" for candidate in texts]
        with replacing(path, durable=False, scratch=scratch) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", errors="replace")
    return folder


def safe_name(key: str) -> str:
    """The sidecar's name for a key that is a plain relative path; empty for any other."""
    path = PurePosixPath(key)
    plain = key and not path.is_absolute() and ".." not in path.parts and "\\" not in key
    plain = plain and key.isprintable() and ":" not in key and not key.startswith("~")
    if not plain or any(len(part.encode()) > 240 for part in path.parts) or len(key) > 1000:
        return ""
    if path.name in ("", "."):
        return ""
    return str(path.with_suffix(".txt"))


def _kept_rows(output: Path) -> Iterator[dict[str, Any]]:
    """Rows of which a text was kept, with those texts as `kept`."""
    columns = [*_COLUMNS, *(f"candidates.list.element.{name}" for name in _KEPT)]
    for row in read_rows(output, columns):
        kept = [{**c, "place": n} for n, c in enumerate(row["candidates"]) if c["kept"]]
        if kept:
            yield {**row, "kept": kept}


def _image(number: int, row: dict[str, Any]) -> dict[str, Any]:
    path = row["path"]
    is_url = "://" in path and ".tar/" not in path and ".parquet/" not in path
    if not (is_url or Path(path).is_file()):  # within a shard: the first of ours that it is in
        first = pair_name(row["shard"], row["number"], row["kept"][0]["place"])
        path = f"{row['shard']:05d}.tar/{first}"
    sides = {"width": row["width"], "height": row["height"]}
    return {"id": number, "file_name": displayable(path), **sides, "key": row["key"]}


def _annotations(output: Path) -> Iterator[dict[str, Any]]:
    number = 0
    for image, row in enumerate(_kept_rows(output)):
        for text in row["kept"]:
            yield {
                "id": number,
                "image_id": image,
                "caption": text["text"],
                "source": text["source"],
                "itm_probability": text["itm_probability"],
            }
            number += 1


def _write_list(file: IO[str], values: Iterator[dict[str, Any]]) -> None:
    for number, value in enumerate(values):
        file.write((",\n" if number else "") + json.dumps(value, ensure_ascii=False))
