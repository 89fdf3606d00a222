"""Small turns and shears of a picture, as the warpAffine of OpenCV 4 computes them, to the bit.

A point of the source is found to 1/32 of a pixel, and the four pixels around it are weighed in
integers. Here the three colours of a pixel lie in one 64-bit integer, 21 bits each, so that they
are fetched and weighed in one go; numpy lets other threads run meanwhile.
"""

from __future__ import annotations

import numpy as np

_LANE = 21  # bits; a colour times all weights, 255 * 32 * 32, takes 18
_LANES = 1 + (1 << _LANE) + (1 << 2 * _LANE)
_STEPS = 5  # bits of a fraction of a pixel
_FINER = 5  # more bits while a coordinate is summed up
_WHOLE = 1 << _STEPS


def warp(pixels: np.ndarray, matrix: np.ndarray, fill: int) -> np.ndarray:
    """Move each pixel at (x, y) to matrix @ (x, y, 1), filling in between linearly.

    Args:
        pixels: uint8 [3, H, W].
        matrix: float [2, 3], invertible in its first two columns.
        fill: the grey level outside of the picture, into which its edge runs.

    Returns:
        uint8 [3, H, W], in memory of its own.
    """
    height, width = pixels.shape[1:]
    x, y = _points(matrix, height, width)
    padded = _packed(pixels, fill)
    left = np.clip((x >> _STEPS) + 1, 0, width + 1)
    right = np.clip((x >> _STEPS) + 2, 0, width + 1)
    upper = np.clip((y >> _STEPS) + 1, 0, height + 1) * (width + 2)
    lower = np.clip((y >> _STEPS) + 2, 0, height + 1) * (width + 2)
    x &= _WHOLE - 1
    y &= _WHOLE - 1
    above = padded.take(upper + left) * (_WHOLE - x) + padded.take(upper + right) * x
    below = padded.take(lower + left) * (_WHOLE - x) + padded.take(lower + right) * x
    mean = above * (_WHOLE - y) + below * y + (1 << 2 * _STEPS - 1) * _LANES
    warped = np.empty_like(pixels, order="C")
    for channel in range(3):
        warped[channel] = mean >> (2 * _STEPS + channel * _LANE)  # the lowest 8 bits of it
    return warped


def shear(along_x: float, along_y: float) -> np.ndarray:
    """The matrix that moves a pixel by a part of its distance from the top, or from the left."""
    return np.array([[1, along_x, 0], [along_y, 1, 0]], dtype=np.float64)


def rotation(degrees: float, width: int, height: int) -> np.ndarray:
    """The matrix that turns anticlockwise around (width / 2, height / 2)."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = width / 2, height / 2
    return np.array(
        [
            [cosine, sine, (1 - cosine) * x - sine * y],
            [-sine, cosine, sine * x + (1 - cosine) * y],
        ]
    )


def _points(matrix: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of the result the x and y it comes from: int64 [H, W], in 1/32 of a pixel."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    scale = 1 << (_STEPS + _FINER)
    columns, rows = np.arange(width), np.arange(height)
    half = 1 << (_FINER - 1)
    along = np.rint(inverse[:, :1] * columns * scale).astype(np.int64)  # [2, W]
    down = np.rint((inverse[:, 1:2] * rows + inverse[:, 2:]) * scale).astype(np.int64) + half
    x, y = (down[:, :, None] + along[:, None, :]) >> _FINER
    return x, y


def _packed(pixels: np.ndarray, fill: int) -> np.ndarray:
    """int64 [(H + 2) * (W + 2)]: three colours in each, with a border of the fill around."""
    height, width = pixels.shape[1:]
    padded = np.full((height + 2, width + 2), fill * _LANES, dtype=np.int64)
    inside = padded[1:-1, 1:-1]
    inside[:] = pixels[2]
    for channel in (1, 0):
        inside <<= _LANE
        inside |= pixels[channel]
    return padded.ravel()
