"""Full-size pixels to the model's upright square, the same through torch and through Pillow."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from blip_fast.images.decode import TURNED, Decoded


def resize(image: Decoded, size: int) -> Tensor:
    """Resize to a square with an antialiased bicubic filter, then set upright.

    The aspect ratio is not kept: BLIP's test transform. Each axis is filtered on its own and the
    result between is rounded to 8 bits, so the order of the two shows: by a dozen grey levels at
    hard edges. It is that of Pillow 13 on the upright image, in every version of Pillow and on
    both ways. torch filters with weights of 15 bits, Pillow of 22: their results differ by one
    grey level at times, and by two in a few values of a million.

    Args:
        size: side of the square, in pixels.

    Returns:
        uint8 [3, size, size], contiguous, in memory of its own.
    """
    between = size_between(*image.stored_size, image.orientation, size)
    if isinstance(image.pixels, Tensor):
        square = _resample(_resample(image.pixels[None], *between), size, size)[0]
    else:
        small = image.pixels
        for shape in (between, (size, size)):
            small = small.resize(shape, Image.Resampling.BICUBIC)
        square = torch.from_numpy(np.array(small.convert("RGB"))).permute(2, 0, 1)
    return set_upright(square, image.orientation).clone(memory_format=torch.contiguous_format)


def size_between(width: int, height: int, orientation: int, size: int) -> tuple[int, int]:
    """Width and height after the first of the two passes.

    Args:
        width, height: of the image as it is stored.
    """
    turned = orientation in TURNED  # rows and columns change places
    upright = (height, width) if turned else (width, height)
    return (width, size) if _filters_columns_first(*upright, size) != turned else (size, height)


def set_upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn or mirror [..., height, width] as the EXIF orientation, 1 to 8, asks for."""
    if orientation in TURNED:
        pixels = pixels.transpose(-2, -1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels.flip(-2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels.flip(-1)
    return pixels


def _filters_columns_first(width: int, height: int, size: int) -> bool:
    """Whether the vertical pass is the first: where it takes away far more (Pillow 13's rule)."""
    return height > size and height - size > 2 * (width - size)


def _resample(pixels: Tensor, width: int, height: int) -> Tensor:
    """[1, 3, H, W] to [1, 3, height, width], uint8."""
    if pixels.shape[2:] == (height, width):  # the filter would change nothing
        return pixels
    if pixels.device.type == "cpu":
        return F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    return _resample_floats(pixels, width, height)


def _resample_floats(pixels: Tensor, width: int, height: int) -> Tensor:
    """The same where there is no 8-bit filter: on a GPU."""
    levels = pixels.float().contiguous()
    levels = F.interpolate(levels, size=(height, width), mode="bicubic", antialias=True)
    return levels.round_().clamp_(0, 255).to(torch.uint8)
