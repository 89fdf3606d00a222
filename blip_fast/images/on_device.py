"""Reading by decoders that work on a device, on many images at a time: DALI and nvImageCodec.

Threads read files and check their headers; one more thread decodes batch after batch while the
caller works on the one before. Plain JPEG goes to the device. All else, and every JPEG that the
device's decoder refuses, goes to Pillow, which decides: so a damaged file costs its batch nothing,
statuses are those of the CPU's decoders, and `Picture.decoder` says who read it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from blip_fast.images.ahead import run_ahead
from blip_fast.images.decode import PlainJpeg, plain_jpeg
from blip_fast.images.load import Source, read_bytes
from blip_fast.images.options import ImageOptions
from blip_fast.images.picture import Picture, failure, read_alone
from blip_fast.images.status import ImageError, Status

BATCH = 32  # files decoded together, at most
_BATCH_PIXELS = 2**27  # theirs, unless one alone has more: 403 MB on the device


class SquareDecoder(Protocol):
    """A decoder of many files at a time."""

    def decode(self, jpegs: Sequence[PlainJpeg]) -> list[Tensor | None]:
        """Decode, resize and set upright at most `BATCH` files.

        Returns:
            for each uint8 [3, size, size] in memory of its own, or None where it is refused.
        """
        ...


@dataclass(frozen=True, eq=False)
class _Named:
    """A file on its way to the device."""

    name: str
    jpeg: PlainJpeg


_Prepared: TypeAlias = Picture | _Named


def read_on_device(
    sources: Iterable[tuple[Source, str]], options: ImageOptions, workers: int
) -> Iterator[Picture]:
    """Read images, each with its name, and give them in order, their pixels on the device.

    Raises:
        RuntimeError: where the decoder reads nothing at all, not even a file of our making.
    """
    jobs = (partial(_prepare, source, options, name) for source, name in sources)
    prepared = run_ahead(jobs, workers, BATCH, "read_pictures")
    batches = (partial(_decode, batch, options, workers) for batch in _batches(prepared))
    for pictures in run_ahead(batches, 1, 1, "decode_pictures"):
        yield from pictures


def _prepare(source: Source, options: ImageOptions, name: str) -> _Prepared:
    """Read a file and check its header; read it all where it is not for the device."""
    if isinstance(source, (Image.Image, np.ndarray, Tensor)):
        return _by_reference(source, options, name)
    try:
        data = read_bytes(source, options.max_bytes)
        jpeg = plain_jpeg(data, options)
    except ImageError as error:
        return failure(name, error)
    return _by_reference(data, options, name) if jpeg is None else _Named(name, jpeg)


def _by_reference(source: Source, options: ImageOptions, name: str) -> Picture:
    """Read by Pillow what is not for the device, and bring it there."""
    picture = read_alone(source, replace(options, decoder="pillow", device="cpu"), name)
    if picture.pixels is None:
        return picture
    return replace(picture, pixels=picture.pixels.to(options.device))


def _batches(prepared: Iterable[_Prepared]) -> Iterator[list[_Prepared]]:
    """Neighbours, as many as the device takes together."""
    batch: list[_Prepared] = []
    pixels = 0
    for one in prepared:
        more = one.jpeg.width * one.jpeg.height if isinstance(one, _Named) else 0
        if batch and (len(batch) == BATCH or pixels + more > _BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(one)
        pixels += more
    if batch:
        yield batch


def _decode(batch: Sequence[_Prepared], options: ImageOptions, workers: int) -> list[Picture]:
    jpegs = [one.jpeg for one in batch if isinstance(one, _Named)]
    squares: Iterator[Tensor | None] = iter(())
    if jpegs:
        decoder = _decoder(options.decoder, options.size, options.device, workers)
        found = decoder.decode(jpegs)
        if not any(square is not None for square in found):
            _check_works(decoder, options)
        squares = iter(found)
    return [_finish(one, squares, options) if isinstance(one, _Named) else one for one in batch]


def _finish(one: _Named, squares: Iterator[Tensor | None], options: ImageOptions) -> Picture:
    pixels = next(squares)
    if pixels is None:
        return _by_reference(one.jpeg.data, options, one.name)
    return Picture(one.name, pixels, Status.SUCCESS, "", *one.jpeg.size, options.decoder)


def _check_works(decoder: SquareDecoder, options: ImageOptions) -> None:
    """Tell a device that does not work from files that are damaged.

    Without this, Pillow would read every file in the place of a decoder that was asked for.
    """
    sample = simplejpeg.encode_jpeg(np.full((16, 16, 3), 128, np.uint8))
    if decoder.decode([PlainJpeg(sample, 16, 16, 1)]) == [None]:
        raise RuntimeError(
            f"decoder {options.decoder!r} on {options.device} reads nothing, not even a grey "
            "square of ours; is the device there, and is memory left on it? Else take decoder "
            "'auto'"
        )


@functools.lru_cache(maxsize=4)  # thumbnails and model input take one each
def _decoder(name: str, size: int, device: str, threads: int) -> SquareDecoder:
    """Made once, because a device takes its time to start. Where a package cannot be imported, its
    own error says why."""
    if name == "dali":
        from blip_fast.images.dali import Dali

        return Dali(size, torch.device(device), BATCH, threads)
    from blip_fast.images.nvimgcodec import NvImageCodec

    return NvImageCodec(size, torch.device(device))
