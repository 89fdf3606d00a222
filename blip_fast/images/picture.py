"""What becomes of an image: model input, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip_fast.images.arrays import from_array, from_normalised, from_tensor
from blip_fast.images.decode import Decoded, decode, from_pillow
from blip_fast.images.load import Source, read_bytes
from blip_fast.images.options import ImageOptions
from blip_fast.images.resize import resize
from blip_fast.images.status import ImageError, Status, failing_as


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the model takes it, or the reason why there is none.

    Attributes:
        name: path, URL, or "image 3".
        pixels: uint8 [3, size, size], or float32 [3, size, size] where it came as normalised
            model input; on the CPU, or where `ImageOptions.device` says. None unless `status` is
            success.
        status: success, failed_to_read, failed_to_decode or too_large.
        error: the reason, in one line; "" on success.
        width, height: of the original, upright, in pixels; 0 where there is no picture.
        decoder: which one read it: "simplejpeg", "pillow", "dali" or "nvimgcodec"; "" where there
            was nothing to decode, or no picture.
    """

    name: str
    pixels: Tensor | None
    status: Status
    error: str
    width: int
    height: int
    decoder: str = ""


def read_alone(source: Source, options: ImageOptions, name: str) -> Picture:
    """Read one image on the CPU; the decoders that work on many at a time are not asked.

    Args:
        source: as of `read_picture`.
    """
    try:
        image = _read(source, options)
        if isinstance(image, Tensor):
            return Picture(name, image, Status.SUCCESS, "", options.size, options.size)
        with failing_as(Status.FAILED_TO_DECODE):
            pixels = resize(image, options.size)
    except ImageError as error:
        return failure(name, error)
    return Picture(name, pixels, Status.SUCCESS, "", *image.file_size, image.decoder)


def failure(name: str, error: ImageError) -> Picture:
    """What is left of an image that cannot be used."""
    return Picture(name, None, error.status, str(error), 0, 0)


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


def _read(source: Source, options: ImageOptions) -> Decoded | Tensor:
    """An image at its full size, or model input as it came."""
    with failing_as(Status.FAILED_TO_DECODE):
        if isinstance(source, Tensor) and source.is_floating_point():
            return from_normalised(source, options.size)
        if isinstance(source, Tensor):
            return from_tensor(source, options)
        if isinstance(source, np.ndarray):
            return from_array(source, options)
        if isinstance(source, Image.Image):
            return from_pillow(source, options)
        return decode(read_bytes(source, options.max_bytes), options)
