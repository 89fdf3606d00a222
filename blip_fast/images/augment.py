"""BLIP's augmentation for training: a random crop, a mirror, and two small random changes.

It differs from the reference's in three points: pictures are set upright first, the operations
that change nothing at BLIP's strength are not carried out (Brightness and Sharpness are exact
identities there), and AutoContrast does what the reference says it does (that of Pillow): its own
subtracts in 8 bits and turns a colour white wherever its darkest value is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip_fast.images.decode import TURNED, Decoded
from blip_fast.images.resize import resize
from blip_fast.images.warp import rotation, shear, warp

# RandomAugment(N=2, M=5) of the reference.
OPERATIONS = 2
_PROBABILITY = 0.5
_SHEAR = 0.15
_TRANSLATE = 5  # pixels
_ROTATE = 15  # degrees
_FILL = 128

_RATIO = (3 / 4, 4 / 3)  # of width to height of a crop
_TRIES = 10  # for a crop that fits

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@dataclass(frozen=True)
class Augment:
    """A full-size picture and a seed to uint8 [3, size, size]; the same for the same seed.

    Attributes:
        size: side of the square, in pixels.
        min_scale: least part of the picture's area that is kept: 0.2 in pretraining, 0.5 after.

    Raises:
        ValueError: where a number is out of range.
    """

    size: int
    min_scale: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.min_scale <= 1:
            raise ValueError(
                f"size is {self.size} and min_scale {self.min_scale}; size must be at least 1 and "
                "min_scale above 0 and at most 1"
            )

    def __call__(self, image: Decoded, seed: int) -> Tensor:
        random = Random(seed)
        box = random_box(*image.size, self.min_scale, random)
        pixels = resize(crop(image, box), self.size).numpy()
        if random.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(random_changes(pixels, random)))


def random_box(width: int, height: int, min_scale: float, random: Random) -> Box:
    """A part of a picture, of random area, shape and place.

    As torchvision's RandomResizedCrop chooses it: where no crop fits in ten tries, the largest one
    of allowed shape, in the middle.
    """
    least, most = (math.log(ratio) for ratio in _RATIO)
    for _ in range(_TRIES):
        area = width * height * (min_scale + (1 - min_scale) * random.random())
        ratio = math.exp(least + (most - least) * random.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.random() * (width - w + 1))
            return left, int(random.random() * (height - h + 1)), w, h
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def crop(image: Decoded, box: Box) -> Decoded:
    """A part of a picture, given in pixels of the upright one and still stored as it was."""
    left, top, w, h = box
    width, height = image.size
    if image.orientation in (2, 3, 6, 7):
        left = width - left - w
    if image.orientation in (3, 4, 7, 8):
        top = height - top - h
    if image.orientation in TURNED:
        left, top, w, h = top, left, h, w
    if isinstance(image.pixels, Image.Image):
        return Decoded(image.pixels.crop((left, top, left + w, top + h)), image.orientation)
    return Decoded(image.pixels[:, top : top + h, left : left + w], image.orientation)


def random_changes(pixels: np.ndarray, random: Random) -> np.ndarray:
    """BLIP's RandomAugment: two operations, drawn with replacement, each carried out or not.

    Args:
        pixels: uint8 [3, H, W]; not changed.
    """
    for _ in range(OPERATIONS):
        change = _CHANGES[int(random.random() * len(_CHANGES))]
        is_done, sign = random.random() < _PROBABILITY, 1 if random.random() < 0.5 else -1
        if is_done:
            pixels = change(pixels, sign)
    return pixels


def autocontrast(pixels: np.ndarray) -> np.ndarray:
    """Stretch each colour's values to 0..255, as Pillow's ImageOps.autocontrast."""

    def table(channel: np.ndarray) -> np.ndarray | None:
        low, high = int(channel.min()), int(channel.max())
        if high <= low:
            return None
        scale = 255 / (high - low)
        return np.clip(np.arange(256) * scale - low * scale, 0, 255).astype(np.uint8)

    return _through_tables(pixels, table)


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Spread each colour's values evenly, as Pillow's ImageOps.equalize."""

    def table(channel: np.ndarray) -> np.ndarray | None:
        histogram = np.bincount(channel.ravel(), minlength=256)
        step = int(histogram[: int(channel.max())].sum()) // 255  # all but the brightest
        if step == 0:
            return None
        before = np.concatenate([[step // 2], histogram[:-1]]).cumsum()
        return np.minimum(before // step, 255).astype(np.uint8)

    return _through_tables(pixels, table)


def _through_tables(
    pixels: np.ndarray, table: Callable[[np.ndarray], np.ndarray | None]
) -> np.ndarray:
    """Replace each value by its entry in its channel's table; None leaves a channel as it is."""
    changed = np.array(pixels, order="C")
    for channel in changed:
        entries = table(channel)
        if entries is not None:
            channel[:] = entries[channel]
    return changed


def _translated(pixels: np.ndarray, x: int, y: int) -> np.ndarray:
    """Moved by whole pixels to the left and up, with grey where nothing comes in."""
    height, width = pixels.shape[1:]
    moved = np.full_like(pixels, _FILL, order="C")
    source, target = pixels, moved
    for axis, by, length in ((2, x, width), (1, y, height)):
        by = max(-length, min(length, by))
        kept = slice(max(by, 0), length + min(by, 0)), slice(max(-by, 0), length - max(by, 0))
        source, target = (
            part[(slice(None),) * axis + (place,)]
            for part, place in zip((source, target), kept, strict=True)
        )
    target[:] = source
    return moved


def _rotated(pixels: np.ndarray, sign: int) -> np.ndarray:
    height, width = pixels.shape[1:]
    return warp(pixels, rotation(sign * _ROTATE, width, height), _FILL)


def _unchanged(pixels: np.ndarray, sign: int) -> np.ndarray:
    return pixels


# Pixels uint8 [3, H, W] and a sign, for those that go both ways.
_CHANGES: tuple[Callable[[np.ndarray, int], np.ndarray], ...] = (
    _unchanged,  # Identity
    lambda pixels, sign: autocontrast(pixels),
    _unchanged,  # Brightness, whose factor is 1 at this strength
    _unchanged,  # Sharpness, likewise
    lambda pixels, sign: equalize(pixels),
    lambda pixels, sign: warp(pixels, shear(sign * _SHEAR, 0), _FILL),
    lambda pixels, sign: warp(pixels, shear(0, sign * _SHEAR), _FILL),
    lambda pixels, sign: _translated(pixels, sign * _TRANSLATE, 0),
    lambda pixels, sign: _translated(pixels, 0, sign * _TRANSLATE),
    _rotated,
)
