"""Hugging Face `datasets` objects, in memory or memory-mapped; the library is not imported."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip_fast.data.parquet import IMAGE_COLUMNS, TEXT_COLUMNS, bytes_or_path
from blip_fast.data.web.pictures import NoDamage, WebPicture, as_text, digest, slices
from blip_fast.images import Status


class WebDataset:
    """The rows of a `datasets.Dataset`, cut into shards."""

    def __init__(self, dataset: Any, shard_size: int) -> None:
        """
        Args:
            dataset: with a column of pictures (`image`, bytes, paths or URLs), and one of texts
                where there are texts.

        Raises:
            ValueError: where it has no column of pictures, or no rows.
        """
        if not hasattr(dataset, "__len__"):
            raise ValueError("a streamed dataset has no rows to count; load it without streaming")
        names = list(dataset.column_names)
        image = next((name for name in IMAGE_COLUMNS if name in names), None)
        if image is None:
            raise ValueError(
                f"the dataset has no column of pictures: looked for {', '.join(IMAGE_COLUMNS)} "
                f"and found {', '.join(names)}"
            )
        feature = dataset.features[image]
        if getattr(feature, "decode", False):  # the encoded bytes, which the kept pairs hold
            dataset = dataset.cast_column(image, type(feature)(decode=False))
        self._dataset, self._image = dataset, image
        self._text = next((name for name in TEXT_COLUMNS if name in names), None)
        self.name = f"datasets.Dataset {getattr(dataset, '_fingerprint', '')}".strip()
        self.count = len(dataset)
        if not self.count:
            raise ValueError("the dataset has no rows")
        self._shards = slices(self.count, shard_size)

    @property
    def identity(self) -> str:
        return digest([self.name, str(self.count), self._image, str(self._text)])

    def __len__(self) -> int:
        return len(self._shards)

    def open(self, shard: int) -> WebDatasetShard:
        return WebDatasetShard(self._dataset, self._image, self._text, self._shards[shard])

    def check(self) -> None:
        """It is held by the caller."""


class WebDatasetShard(NoDamage):
    """Some neighbouring rows of a dataset."""

    def __init__(self, dataset: Any, image: str, text: str | None, rows: range) -> None:
        self._dataset, self._image, self._text, self._rows = dataset, image, text, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> WebPicture:
        place = self._rows[number]
        row = self._dataset[place]
        key = f"row/{place}"
        texts, wrong = _texts(row[self._text] if self._text is not None else None)
        value = bytes_or_path(row[self._image])
        if hasattr(value, "save"):  # a Pillow image, of a feature that decodes all the same
            file = io.BytesIO()
            value.save(file, "PNG")
            value = file.getvalue()
        if not isinstance(value, (bytes, str, Path)):
            problem = f"the picture is {'null' if value is None else type(value).__name__}"
            return WebPicture(key, key, None, texts, Status.FAILED_TO_READ, problem)
        path = key if isinstance(value, bytes) else str(value)
        return WebPicture(key, path, value, texts, error=wrong, text_failed=bool(wrong))


def _texts(value: Any) -> tuple[tuple[str, ...], str]:
    """The texts of a cell, and what is wrong with it: None is no text, and a number is none."""
    if value is None:
        return (), ""
    values = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    wrong = [one for one in values if not isinstance(one, str)]
    if wrong:
        return (), f"its text is {type(wrong[0]).__name__}"
    return tuple(as_text(one).strip() for one in values), ""
