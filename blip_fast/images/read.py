"""From sources to pictures: one, or many read ahead, by whichever decoder the options name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial

from blip_fast.images.ahead import run_ahead
from blip_fast.images.load import Source, name_of
from blip_fast.images.on_device import read_on_device
from blip_fast.images.options import ON_DEVICE, ImageOptions
from blip_fast.images.picture import Picture, read_alone

_DEFAULTS = ImageOptions()
_MOST_WORKERS = 8  # a worker holds an image at full size: 268 MB at the default limit
_AHEAD = 2  # images read or being read for each worker


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
    if options.decoder in ON_DEVICE:
        return next(read_on_device([(source, name)], options, workers=1))
    return read_alone(source, options, name)


def read_pictures(
    sources: Iterable[Source], options: ImageOptions = _DEFAULTS, workers: int | None = None
) -> Iterator[Picture]:
    """Read images in threads, a few ahead of the one asked for, and give them in order.

    Nothing is read before the first is asked for. Images in memory are called "image 0",
    "image 1" and so on, by their places in `sources`. Decoders that work on a device are given
    batches, so that these read further ahead.

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
    named = ((source, name_of(source, number)) for number, source in enumerate(sources))
    if options.decoder in ON_DEVICE:
        return read_on_device(named, options, workers)
    jobs = (partial(read_alone, source, options, name) for source, name in named)
    return run_ahead(jobs, workers, _AHEAD * workers, "read_pictures")


def _usable_processors() -> int:
    """Those this process is allowed to use, where the system can say."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
