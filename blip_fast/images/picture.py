"""One image from its source to model input, or the reason why there is none."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip_fast.images.arrays import from_array, from_normalised, from_tensor
from blip_fast.images.decode import decode, from_pillow
from blip_fast.images.load import Source, name_of, read_bytes
from blip_fast.images.options import ImageOptions
from blip_fast.images.resize import resize
from blip_fast.images.status import ImageError, Status, failing_as

_DEFAULTS = ImageOptions()
_MOST_WORKERS = 8  # a worker holds an image at full size: 268 MB at the default limit
_AHEAD = 2  # images read or being read for each worker


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the model takes it, or the reason why there is none.

    Attributes:
        name: path, URL, or "image 3".
        pixels: uint8 [3, size, size], or float32 [3, size, size] where it came as normalised
            model input; None unless `status` is success.
        status: success, failed_to_read, failed_to_decode or too_large.
        error: the reason, in one line; "" on success.
        width, height: of the original, upright, in pixels; 0 where there is no picture.
    """

    name: str
    pixels: Tensor | None
    status: Status
    error: str
    width: int
    height: int


def read_picture(
    source: Source, options: ImageOptions = _DEFAULTS, name: str | None = None
) -> Picture:
    """Read, decode and resize one image; whatever is wrong with it is in the Picture's status.

    Args:
        source: path, URL, encoded bytes, PIL image, uint8 array [H, W(, channels)], uint8 tensor
            [3, H, W], or float tensor [3, size, size], which is normalised model input.
        name: what to call it; its path or URL where none is given.
    """
    name = name_of(source) if name is None else name
    try:
        pixels, width, height = _read(source, options)
    except ImageError as error:
        return Picture(name, None, error.status, str(error), 0, 0)
    return Picture(name, pixels, Status.SUCCESS, "", width, height)


def read_pictures(
    sources: Iterable[Source], options: ImageOptions = _DEFAULTS, workers: int | None = None
) -> Iterator[Picture]:
    """Read images in threads, a few ahead of the one asked for, and give them in order.

    Nothing is read before the first is asked for. Images in memory are called "image 0",
    "image 1" and so on, by their places in `sources`.

    Args:
        workers: threads; decoding and resizing release Python's lock. The processors this
            process may use, at most 8, where it is not given.

    Raises:
        ValueError: where `workers` is less than 1.
    """
    if workers is None:
        workers = min(_MOST_WORKERS, _usable_processors())
    if workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 thread must read")
    return _read_ahead(sources, options, workers)


def stack(pictures: Sequence[Picture]) -> Tensor:
    """The pixels of several pictures as one batch.

    Returns:
        [len(pictures), 3, size, size], contiguous; uint8, or float32 where they were normalised.

    Raises:
        ValueError: where there are none, one has failed, or sizes or dtypes are mixed.
    """
    if failed := [p for p in pictures if p.pixels is None]:
        raise ValueError(
            f"{len(failed)} of {len(pictures)} pictures have no pixels; leave them out. The first: "
            f"{failed[0].name}: {failed[0].status} ({failed[0].error})"
        )
    pixels = [p.pixels for p in pictures if p.pixels is not None]
    if not pixels:
        raise ValueError("there are no pictures to stack; give at least one")
    for picture, own in zip(pictures, pixels, strict=True):
        if own.dtype != pixels[0].dtype:
            raise ValueError(
                f"{pictures[0].name} is {pixels[0].dtype} and {picture.name} is {own.dtype}; uint8 "
                "is still to be normalised and floats are normalised, so make batches of one kind"
            )
        if own.shape != pixels[0].shape:
            raise ValueError(
                f"{pictures[0].name} is {list(pixels[0].shape)} and {picture.name} is "
                f"{list(own.shape)}; read them with the same ImageOptions.size"
            )
    return torch.stack(pixels)


def _read(source: Source, options: ImageOptions) -> tuple[Tensor, int, int]:
    """Pixels, and width and height of the original."""
    with failing_as(Status.FAILED_TO_DECODE):
        if isinstance(source, Tensor) and source.is_floating_point():
            return from_normalised(source, options.size), options.size, options.size
        if isinstance(source, Tensor):
            image = from_tensor(source, options)
        elif isinstance(source, np.ndarray):
            image = from_array(source, options)
        elif isinstance(source, Image.Image):
            image = from_pillow(source, options)
        else:
            image = decode(read_bytes(source, options.max_bytes), options)
        return resize(image, options.size), *image.size


def _read_ahead(
    sources: Iterable[Source], options: ImageOptions, workers: int
) -> Iterator[Picture]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read_pictures")
    waiting: deque[Future[Picture]] = deque()
    try:
        for number, source in enumerate(sources):
            name = name_of(source, number)
            waiting.append(pool.submit(read_picture, source, options, name))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops asking
        pool.shutdown(cancel_futures=True)


def _usable_processors() -> int:
    """Those this process is allowed to use, where the system can say."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
