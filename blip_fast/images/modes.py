"""Pillow's many pixel modes, brought to plain RGB or 8-bit grey without losing the picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

_STRIP = 2**20  # pixels worked on at a time in double precision: 8 MB


def flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Bring a loaded image to mode RGB, or L where it is grey, with nothing transparent.

    * 1, L, P, CMYK, YCbCr, LAB, HSV: as Pillow converts them, except that Pillow refuses some.
    * Transparent ones (RGBA, LA, PA, or a transparent colour): laid on `background`.
    * I;16, I, F: scaled to 8 bits by their white level, which is 65535 for I;16. I and F do not
      say theirs: it is the least of 1 (F alone), 255 and 65535 that no value exceeds. Where
      values are negative or larger still, the least becomes black and the greatest white.
      Pillow's own conversion clips at 255, which turns a 16-bit picture white.

    Args:
        background: red, green, blue, from 0 to 255.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _scaled_to_eight_bits(image)
    if image.has_transparency_data:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(image, mask=image)
        return canvas
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _scaled_to_eight_bits(image: Image.Image) -> Image.Image:
    """Mode L; mode LA where one of the grey levels is declared transparent."""
    black, white = _levels(image)
    scale = 255 / (white - black) if white > black else 0.0
    clear = image.info.get("transparency")
    grey = np.empty((image.height, image.width), np.uint8)
    alpha = np.full_like(grey, 255) if isinstance(clear, int) else None
    for rows, values in _strips(image):
        if alpha is not None:
            alpha[rows][values == clear] = 0
        values = np.nan_to_num(values, nan=black, posinf=white, neginf=black)
        grey[rows] = np.rint((values - black) * scale)
    scaled = Image.fromarray(grey)
    if alpha is not None:
        scaled.putalpha(Image.fromarray(alpha))
    return scaled


def _levels(image: Image.Image) -> tuple[float, float]:
    """The values that become black and white."""
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    least, greatest = np.inf, -np.inf
    for _, values in _strips(image):
        finite = values[np.isfinite(values)]
        least = min(least, finite.min(initial=np.inf))
        greatest = max(greatest, finite.max(initial=-np.inf))
    if least >= 0:  # also where no value is finite
        for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
            if greatest <= white:
                return 0.0, white
    return least, greatest


def _strips(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time: where they lie, and their values in double precision."""
    step = max(1, _STRIP // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        strip = image.crop((0, top, image.width, bottom))
        yield slice(top, bottom), np.asarray(strip).astype(np.float64)
