"""Pictures on their way through the pipeline, and the first two things done to each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from blip_fast.capfilt.rows import Candidate, Row, Scores
from blip_fast.data import displayable
from blip_fast.data.web import WebPicture, WebShard
from blip_fast.images import (
    ON_DEVICE,
    ImageError,
    ImageOptions,
    Status,
    decode,
    read_bytes,
    read_pictures,
    resize,
)
from blip_fast.images.status import failing_as


@dataclass
class Job:
    """One picture.

    Attributes:
        number: within its shard.
        picture: as the source gave it.
        data: its encoded bytes.
        views: its pixels as models want them, uint8 [3, S, S]; empty where it cannot be used.
        status, error: of the picture and its text, as in a `Row`.
        candidates: its texts so far.
        scores: for each candidate that can be scored, those of each filter.
    """

    number: int
    shard: WebShard
    picture: WebPicture | None = None
    data: bytes | None = None
    views: dict[ImageOptions, Tensor] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    status: Status = Status.SUCCESS
    error: str = ""
    candidates: list[Candidate] = field(default_factory=list)
    scores: list[tuple[Scores, ...]] = field(default_factory=list)
    row: Row | None = None

    @property
    def usable(self) -> bool:
        return self.status is Status.SUCCESS

    def __str__(self) -> str:
        return f"picture {self.number}" if self.picture is None else displayable(self.picture.path)

    def fail(self, status: Status, error: str) -> None:
        self.status, self.error = status, error


@dataclass
class Batch:
    """Neighbouring pictures of one shard: what a model sees at once, always the same ones.

    Attributes:
        name: of the shard.
        last: whether the shard ends with it.
        memories: of the usable pictures, by model and in their order.
    """

    name: str
    shard: WebShard
    items: list[Job]
    last: bool
    memories: dict[int, Any] = field(default_factory=dict)

    @property
    def usable(self) -> list[Job]:
        return [job for job in self.items if job.usable]

    def __str__(self) -> str:
        if not self.items:
            return f"shard {self.name}"
        return f"shard {self.name}, pictures {self.items[0].number} to {self.items[-1].number}"


@dataclass(frozen=True)
class Decoded:
    """A picture's pixels for every model, and its size as people see it."""

    views: dict[ImageOptions, Tensor]
    width: int
    height: int


class Reader:
    """Reads and decodes: the work of two crews, and what becomes of its results.

    Args:
        options: of each model; models that want the same share a view.
    """

    def __init__(self, options: Iterable[ImageOptions]) -> None:
        self._options = list(dict.fromkeys(options))
        self._max_bytes = max(one.max_bytes for one in self._options)
        # What decoding depends on: models that differ in size alone share a decoded picture.
        self._alike = {one: replace(one, size=1) for one in self._options}

    def read(self, job: Job) -> tuple[WebPicture, bytes | None]:
        """A picture of the source, with its bytes where it has any."""
        # What it is called is known before its bytes, which may never come.
        job.picture = picture = job.shard[job.number]
        if picture.image is None:
            return picture, None
        try:
            return picture, read_bytes(picture.image, self._max_bytes)
        except ImageError as error:
            return replace(picture, status=error.status, error=str(error)), None

    @staticmethod
    def settle_read(job: Job, result: Any) -> None:
        if isinstance(result, TimeoutError):
            job.picture = job.picture or WebPicture(f"number {job.number}", "", None)
            job.fail(Status.FAILED_TO_READ, str(result))
        elif isinstance(result, BaseException):
            raise result
        else:
            job.picture, job.data = result
            job.fail(job.picture.status, job.picture.error)

    def decode(self, job: Job) -> Decoded | None:
        """Pixels for every model.

        Raises:
            ImageError: where it is no picture.
        """
        if job.data is None:
            return None
        with failing_as(Status.FAILED_TO_DECODE):
            decoded = {}
            for options, alike in self._alike.items():
                if alike not in decoded:
                    decoded[alike] = decode(job.data, options)
            views = {o: resize(decoded[alike], o.size) for o, alike in self._alike.items()}
            return Decoded(views, *next(iter(decoded.values())).file_size)

    @property
    def on_device(self) -> bool:
        """Whether pictures are decoded a batch at a time, by `decode_batch`."""
        return any(options.decoder in ON_DEVICE for options in self._options)

    def decode_batch(self, batch: Batch) -> None:
        """Pixels of all pictures of a batch for every model, by decoders that work on a device."""
        jobs = [job for job in batch.items if job.data is not None]
        for options in self._options:
            pictures = read_pictures([job.data for job in jobs if job.data is not None], options)
            for job, picture in zip(jobs, pictures, strict=True):
                if picture.pixels is None:
                    job.fail(picture.status, picture.error)
                else:
                    job.views[options] = picture.pixels
                    job.width, job.height = picture.width, picture.height

    @staticmethod
    def settle_decode(job: Job, result: Any) -> None:
        if isinstance(result, ImageError):
            job.fail(result.status, str(result))
        elif isinstance(result, TimeoutError):
            job.fail(Status.FAILED_TO_DECODE, str(result))
        elif isinstance(result, BaseException):
            raise result
        elif result is not None:
            job.views, job.width, job.height = result.views, result.width, result.height
