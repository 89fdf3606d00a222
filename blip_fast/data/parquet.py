"""Samples of parquet tables: encoded pictures, or their paths or URLs, beside their texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip_fast.data.fetch import patiently
from blip_fast.data.folder import is_url
from blip_fast.data.roots import below
from blip_fast.data.samples import BadSample, Sample, check_text
from blip_fast.data.shardlist import list_shards

# Names of columns, in order of preference.
IMAGE_COLUMNS = ("image", "jpg", "png", "image_path", "file_name", "path", "url", "URL")
TEXT_COLUMNS = ("caption", "text", "txt", "TEXT", "top_caption")
_ID = "image_id"


class ParquetSource:
    """Parquet files. A shard is a row group, which is read whole when it is opened.

    A row group is the least that can be read of a file, and it holds 100 pictures as Hugging Face
    writes it: to keep whole files at hand would take gigabytes.
    """

    def __init__(self, spec: str | Path, image_root: str | Path | None = None) -> None:
        """Find the files; see `list_shards` for what may be given. Nothing is opened.

        Args:
            image_root: what relative paths begin below; the folder of their file where it is None.

        Raises:
            ValueError: where there are none.
        """
        self.name = str(spec)
        self.files = list_shards(spec, ".parquet")
        self._root = image_root

    @cached_property
    def _groups(self) -> list[tuple[str, int, int]]:
        """File, number within it, and rows of every row group: what the files' footers say."""
        groups = []
        for name in self.files:
            with open_parquet(name) as file:
                _columns(file.schema_arrow, name)
                rows = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
                groups += [(name, i, count) for i, count in enumerate(rows)]
        return groups

    @property
    def counts(self) -> Sequence[int]:
        """
        Raises:
            ValueError: naming a file that is damaged or lacks a column.
        """
        return [rows for _, _, rows in self._groups]

    def open(self, shard: int) -> ParquetShard:
        name, group, _ = self._groups[shard]
        return ParquetShard(name, group, self._root)


class ParquetShard:
    """The rows of one row group, in memory."""

    def __init__(self, name: str, group: int, image_root: str | Path | None) -> None:
        self.name = f"{name}, row group {group}"
        self._root = name.rpartition("/")[0] or "." if image_root is None else image_root
        with open_parquet(name) as file:
            image, text = _columns(file.schema_arrow, name)
            ids = [_ID] if _ID in file.schema_arrow.names else []
            table = file.read_row_group(group, columns=[image, text, *ids], use_threads=False)
        self._images, self._texts = table.column(image), table.column(text)
        self._ids = table.column(_ID) if ids else None
        self._key = f"{PurePosixPath(name).name}/{group}"

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        where = f"{self.name}, row {number}"
        key = f"{self._key}/{number}"
        text = self._texts[number].as_py()
        if text is None:
            raise BadSample(f"{where}: the text is null")
        image = self._image(self._images[number].as_py(), where)
        image_id = self._ids[number].as_py() if self._ids is not None else None
        if image_id is None:
            image_id = key if isinstance(image, bytes) else image
        return Sample(key, (image,), check_text(text, where), str(image_id))

    def _image(self, value: Any, where: str) -> Path | str | bytes:
        value = bytes_or_path(value)
        if value is None:
            raise BadSample(f"{where}: the picture is null")
        return value if isinstance(value, bytes) else below(self._root, value)


def bytes_or_path(value: Any) -> Any:
    """Of a cell that holds both, as Hugging Face keeps a picture, the bytes, or the path where they
    are null; any other cell as it is."""
    if isinstance(value, dict):
        return value.get("path") if value.get("bytes") is None else value["bytes"]
    return value


def open_parquet(name: str) -> pq.ParquetFile:
    """
    Raises:
        ValueError: where it is no whole parquet file.
        OSError: where it cannot be read.
    """

    def attempt() -> pq.ParquetFile:
        if not is_url(name):
            return pq.ParquetFile(name)
        import fsspec  # here, because few need it and it takes time to import

        return pq.ParquetFile(fsspec.open(name, "rb").open())

    try:
        return patiently(attempt)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name}: {error}") from error


def _columns(schema: pa.Schema, name: str) -> tuple[str, str]:
    """The names of the columns of pictures and texts, their types checked."""
    image = _first(schema, IMAGE_COLUMNS, "pictures", name)
    text = _first(schema, TEXT_COLUMNS, "texts", name)
    kind = schema.field(image).type
    is_pair = pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}
    if not (is_pair or _is_binary(kind) or _is_text(kind)):
        raise ValueError(
            f"{name}: the column {image} holds {kind}; pictures are bytes, paths, or a struct of "
            "bytes and path"
        )
    if not _is_text(schema.field(text).type):
        raise ValueError(f"{name}: the column {text} holds {schema.field(text).type}, not texts")
    return image, text


def _first(schema: pa.Schema, names: Sequence[str], what: str, file: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise ValueError(
        f"{file} has no column of {what}: looked for {', '.join(names)} and found "
        f"{', '.join(schema.names)}"
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
