"""CapFilt as a callable from batch to batch, for anyone's `map_batches`.

    ds.map_batches(CapFilter, fn_constructor_kwargs={"captioners": "scenes"}, batch_size=64,
                   compute=ray.data.ActorPoolStrategy(size=8), num_gpus=1)

A callable of this kind is made and pickled where no model is, and loads its models when it is
first called: once in each of Ray's actors. Give the class, not an object of it: Ray would make a
new one for every batch. Whole runs over shards are in `blip_fast.capfilt.ray_run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from blip_fast.capfilt.jobs import Batch, Job
from blip_fast.capfilt.models import Models
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.rows import SCHEMA
from blip_fast.data import chunks, default_batch_size
from blip_fast.data.web import WebPicture
from blip_fast.data.web.pictures import NoDamage, as_text
from blip_fast.images import read_pictures
from blip_fast.tasks.load import load
from blip_fast.tasks.model import Blip

# What `blip_fast.load` takes, or a function that can be pickled: partial(load, "...", ...).
ModelSpec: TypeAlias = str | Callable[[], Blip]

ADDED = ("status", "error_message", "width", "height", "candidates")


class LazyModels:
    """Captioners and filters that are loaded when they are first asked for.

    A model that is named twice is loaded once. Pickled, it is its names alone.
    """

    def __init__(
        self,
        captioners: ModelSpec | Sequence[ModelSpec],
        filters: ModelSpec | Sequence[ModelSpec] | None,
        options: CapFiltOptions,
    ) -> None:
        """
        Args:
            filters: the captioners where none are given.
        """
        self._captioners = _listed(captioners)
        self._filters = self._captioners if filters is None else _listed(filters)
        self.options = options
        self._loaded: Models | None = None

    def get(self) -> Models:
        if self._loaded is None:
            specs = dict.fromkeys([*self._captioners, *self._filters])
            loaded = {spec: load(spec) if isinstance(spec, str) else spec() for spec in specs}
            captioners = [loaded[spec] for spec in self._captioners]
            filters = [loaded[spec] for spec in self._filters]
            self._loaded = Models(captioners, filters, self.options)
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}


class CapFilter:
    """Captions and judges the pictures of a batch; keeps nothing from one batch to the next.

    Args:
        captioners: names for `blip_fast.load`, or functions that give models.
        filters: likewise; the captioners where none are given.
        options: those about sources, shards and outputs do not matter here.
        image, key, text: the columns with pictures, with what names them, and with web texts,
            which need not be there.
    """

    def __init__(
        self,
        captioners: ModelSpec | Sequence[ModelSpec],
        filters: ModelSpec | Sequence[ModelSpec] | None = None,
        options: CapFiltOptions | None = None,
        *,
        image: str = "image",
        key: str = "key",
        text: str = "text",
    ) -> None:
        self._models = LazyModels(captioners, filters, options or CapFiltOptions())
        self._image, self._key, self._text = image, key, text

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Caption and judge.

        Args:
            batch: columns of equal length: of pictures, their encoded bytes, paths, URLs or uint8
                arrays [H, W, 3]; of texts, strings, lists of them, or None. The key decides on
                the random numbers of a picture's captions.

        Returns:
            the columns that came and those of `ADDED`, as `SCHEMA` of `blip_fast.capfilt` has
            them: Arrow arrays, whose type is the same in every batch. Columns of these names are
            replaced. A picture that cannot be read is a row that says so.

        Raises:
            ValueError: where a column is not there.
        """
        missing = [name for name in (self._image, self._key) if name not in batch]
        if missing:
            raise ValueError(
                f"the batch has the columns {', '.join(batch)}; {' and '.join(missing)} are "
                "missing. Name yours: CapFilter(..., image=, key=, text=)"
            )
        models = self._models.get()
        pictures = [
            WebPicture(as_text(str(key)), "", None, _texts(text))
            for key, text in zip(batch[self._key], self._texts_of(batch), strict=True)
        ]
        jobs = [Job(n, _Given(), picture) for n, picture in enumerate(pictures)]
        _read(jobs, list(batch[self._image]), models)
        size = models.options.batch_size or default_batch_size(models.captioners[0].device.type)
        for some in chunks(jobs, size):
            _judge(some, models)
        rows = [job.row.to_dict() for job in jobs if job.row is not None]
        added = {
            name: pa.array([row[name] for row in rows], SCHEMA.field(name).type) for name in ADDED
        }
        return {**batch, **added}

    def _texts_of(self, batch: Mapping[str, Any]) -> Sequence[Any]:
        return batch[self._text] if self._text in batch else [None] * len(batch[self._key])


class _Given(NoDamage):
    """The shard of pictures that come from no shard."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, number: int) -> WebPicture:
        raise IndexError(number)


def _read(jobs: Sequence[Job], images: Sequence[Any], models: Models) -> None:
    """Give jobs their pixels, as every model wants them."""
    for options in dict.fromkeys(models.image_options):
        for job, picture in zip(jobs, read_pictures(images, options), strict=True):
            if picture.pixels is None:
                job.fail(picture.status, picture.error)
            elif job.usable:
                job.views[options] = picture.pixels
                job.width, job.height = picture.width, picture.height


def _judge(jobs: list[Job], models: Models) -> None:
    batch = Batch("0", _Given(), jobs, True)
    for number in range(len(models.captioners)):
        models.caption(batch, number)
    for number in range(len(models.filters)):
        models.score(batch, number)
    models.decide(batch)


def _listed(specs: ModelSpec | Sequence[ModelSpec]) -> list[ModelSpec]:
    return [specs] if isinstance(specs, str) or callable(specs) else list(specs)


def _texts(value: Any) -> tuple[str, ...]:
    """What a cell of a table says: no text, one, or several."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ()
    values = [value] if isinstance(value, str) else value
    return tuple(as_text(str(text)) for text in values)
