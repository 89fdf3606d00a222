"""What a picture looks like in 64 bits, so that copies of it can be found.

The perceptual hash of Zauner ("Implementation and benchmarking of perceptual image hash
functions", 2010), as the common libraries have it: the signs of the lowest frequencies. Copies
that were resized, compressed again, or made a little lighter differ in few bits; mirrored, turned
or cropped ones do not.
"""

from __future__ import annotations

import functools

import numpy as np
from torch import Tensor

from blip_fast.images.decode import Decoded
from blip_fast.images.resize import resize

_SIDE = 32  # pixels that the frequencies are taken of
_LOW = 8  # frequencies each way
_LEAST_DETAIL = 4.0  # grey levels, standard deviation: below it the bits are those of noise
_LUMA = np.array([0.299, 0.587, 0.114])


def fingerprint(image: Decoded) -> int | None:
    """64 bits; None for a picture of hardly any detail, which would be like every other such."""
    return of_square(resize(image, _SIDE))


def of_square(pixels: Tensor) -> int | None:
    """The same of a picture that is small already: uint8 [3, 32, 32]."""
    grey = np.tensordot(_LUMA, pixels.numpy().astype(np.float64), axes=1)
    if grey.std() < _LEAST_DETAIL:
        return None
    basis = _cosines()
    low = basis @ grey @ basis.T
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@functools.cache
def _cosines() -> np.ndarray:
    """[8, 32], the first rows of the discrete cosine transform (type 2)."""
    place = np.arange(_SIDE) + 0.5
    return np.cos(np.pi / _SIDE * np.arange(_LOW)[:, None] * place)
