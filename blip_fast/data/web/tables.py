"""Parquet tables: encoded pictures, or their paths or URLs, with or without texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import pyarrow as pa

from blip_fast.data.files import displayable
from blip_fast.data.parquet import IMAGE_COLUMNS, TEXT_COLUMNS, bytes_or_path, open_parquet
from blip_fast.data.roots import below
from blip_fast.data.shardlist import list_shards
from blip_fast.data.web.pictures import NoDamage, WebPicture, as_text, digest, slices
from blip_fast.images import Status
from blip_fast.images.status import one_line

_KEYS = ("uid", "key", "id", "image_id")  # columns that may name a row, in order of preference
_OPEN = 2  # row groups in memory; shards that follow each other share theirs
_FOOTERS = 16  # files whose footers are read at a time


class WebTables:
    """Parquet files, each cut into shards of so many rows."""

    def __init__(
        self, spec: str | Path, shard_size: int, image_root: str | Path | None = None
    ) -> None:
        """Find the files and read their footers.

        Args:
            image_root: what relative paths begin below; the folder of their file where it is None.

        Raises:
            ValueError: where there are none, or one is damaged or has no column of pictures.
        """
        self.name = str(spec)
        self.files = list_shards(spec, ".parquet")
        self._root = image_root
        with ThreadPoolExecutor(_FOOTERS) as pool:
            self._groups = list(pool.map(_rows_of_groups, self.files))
        totals = [sum(groups) for groups in self._groups]
        self._shards = [(f, rows) for f, n in enumerate(totals) for rows in slices(n, shard_size)]
        self.count = sum(totals)
        if not self.count:
            raise ValueError(f"{self.name} has no rows")
        self._tables: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._lock = Lock()

    @property
    def identity(self) -> str:
        named = zip(self.files, self._groups, strict=True)
        return digest(f"{PurePosixPath(file).name} {groups}" for file, groups in named)

    def __len__(self) -> int:
        return len(self._shards)

    def open(self, shard: int) -> WebTable:
        file, rows = self._shards[shard]
        parts, start = [], 0
        for group, size in enumerate(self._groups[file]):
            first, last = max(rows.start - start, 0), min(rows.stop - start, size)
            if first < last:
                parts.append(self._group(file, group).slice(first, last - first))
            start += size
        name = self.files[file]
        root = name.rpartition("/")[0] or "." if self._root is None else self._root
        return WebTable(name, rows.start, pa.concat_tables(parts), root)

    def check(self) -> None:
        """A row is in memory when its shard is open; opening the next will tell."""

    def _group(self, file: int, group: int) -> pa.Table:
        with self._lock:
            if (file, group) not in self._tables:
                with open_parquet(self.files[file]) as opened:
                    image, *others = _columns(opened.schema_arrow, self.files[file])
                    names = [image, *(name for name in others if name)]
                    with _damage_of(f"{self.files[file]}, row group {group}"):
                        table = opened.read_row_group(group, columns=names, use_threads=False)
                    self._tables[file, group] = table
                while len(self._tables) > _OPEN:
                    self._tables.popitem(last=False)
            return self._tables[file, group]


class WebTable(NoDamage):
    """Some neighbouring rows of a file, in memory."""

    def __init__(self, name: str, first: int, table: pa.Table, root: str | Path) -> None:
        self.name, self._first, self._root = name, first, root
        image, text, key = _columns(table.schema, name)
        self._images = table.column(image)
        self._texts = table.column(text) if text else None
        self._keys = table.column(key) if key else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> WebPicture:
        row = f"{self.name}/{self._first + number}"
        given = self._keys[number].as_py() if self._keys is not None else None
        key = f"{PurePosixPath(self.name).name}/{self._first + number}"
        key = as_text(str(given)) if given is not None else key
        text = self._texts[number].as_py() if self._texts is not None else None
        some = [text] if isinstance(text, str) else text or ()
        texts = tuple(one.strip() for one in some if one is not None)
        value = bytes_or_path(self._images[number].as_py())
        if not isinstance(value, (bytes, str)):
            problem = f"the picture is {'null' if value is None else type(value).__name__}"
            return WebPicture(key, row, None, texts, Status.FAILED_TO_READ, problem)
        if isinstance(value, bytes):
            return WebPicture(key, row, value, texts)
        image = below(self._root, value)
        path = image if isinstance(image, str) else displayable(image.absolute())
        return WebPicture(key, path, image, texts)


@contextmanager
def _damage_of(name: str) -> Iterator[None]:
    """Tell damage, which pyarrow also calls an OSError, from a disk that does not answer."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno is None:
            raise ValueError(f"{name} is damaged: {one_line(str(error))}") from error
        raise


def _rows_of_groups(name: str) -> list[int]:
    with open_parquet(name) as file:
        _columns(file.schema_arrow, name)
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def _columns(schema: pa.Schema, name: str) -> tuple[str, str | None, str | None]:
    """The columns of pictures, texts and keys; of the latter two there may be none."""

    def first(names: tuple[str, ...]) -> Any:
        return next((column for column in names if column in schema.names), None)

    image = first(IMAGE_COLUMNS)
    if image is None:
        raise ValueError(
            f"{name} has no column of pictures: looked for {', '.join(IMAGE_COLUMNS)} and found "
            f"{', '.join(schema.names)}"
        )
    text = first(TEXT_COLUMNS)
    if text is not None and not _are_texts(schema.field(text).type):
        raise ValueError(f"{name}: the column {text} holds {schema.field(text).type}, not texts")
    return image, text, first(_KEYS)


def _are_texts(kind: pa.DataType) -> bool:
    """Whether a column holds a text a picture, or several, as Hugging Face's Flickr30k."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
