"""Every pixel mode of Pillow becomes RGB or 8-bit grey with the picture still in it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from blip_fast.images import ImageOptions, decode
from blip_fast.images.modes import flatten

WHITE = (255, 255, 255)
RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def levels(image: Image.Image) -> np.ndarray:
    flat = flatten(image, WHITE)
    assert flat.mode in ("L", "RGB")
    return np.asarray(flat.convert("L")).astype(float)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_grey(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(file, kind)
    image = decode(file.getvalue(), ImageOptions()).pixels
    assert isinstance(image, Image.Image)
    assert np.abs(np.asarray(image) - RAMP * 255).max() <= 1
    assert np.asarray(image).mean() == pytest.approx(127.5, abs=0.5)


@pytest.mark.parametrize(
    "values, expected",
    [
        ((RAMP * 200).astype(np.int32), (RAMP * 200).astype(np.int32)),
        ((RAMP * 60000).astype(np.int32), RAMP * 60000 / 257),
        ((RAMP * 2e9 - 1e9).astype(np.int32), RAMP * 255),
        (RAMP.astype(np.float32), RAMP * 255),
        ((RAMP * 200).astype(np.float32), RAMP * 200),
        ((RAMP * 60000).astype(np.float32), RAMP * 60000 / 257),
        ((RAMP * 8 - 4).astype(np.float32), RAMP * 255),
        (np.full((4, 4), 3e30, np.float32), np.zeros((4, 4))),
        (np.full((4, 4), np.nan, np.float32), np.zeros((4, 4))),
        (np.array([[np.nan, 0.5, np.inf, -np.inf]], np.float32), np.array([[0, 127.5, 255, 0]])),
    ],
)
def test_integers_and_floats(values: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(levels(Image.fromarray(values)) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_opaque_modes(mode: str) -> None:
    grey = Image.fromarray(np.where(RAMP > 0.5, 255, 0).astype(np.uint8)).convert("RGB")
    assert np.abs(levels(grey.convert(mode)) - np.asarray(grey.convert("L"))).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_blended(mode: str) -> None:
    image = Image.new("LA", (3, 1))
    image.putdata([(100, 255), (100, 0), (100, 128)])
    image = image.convert("RGBA").convert(mode)  # Pillow loses the alpha of LA on the way to PA
    assert np.asarray(flatten(image, WHITE))[0, :, 0].tolist() == pytest.approx(
        [100, 255, 177], abs=1
    )
    assert np.asarray(flatten(image, (0, 0, 0)))[0, :, 0].tolist() == pytest.approx(
        [100, 0, 50], abs=1
    )


@pytest.mark.parametrize("mode, clear", [("P", 7), ("L", 7), ("RGB", (7, 7, 7)), ("I;16", 7)])
def test_a_transparent_colour(mode: str, clear: object) -> None:
    """Declared in the file: 7 is clear, every other level is not."""
    values = np.array([[7, 200]], np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("RGB").quantize(8)
        clear = image.getpixel((0, 0))
    file = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(file, "PNG", transparency=clear)
    flat = decode(file.getvalue(), ImageOptions(background=(10, 20, 30))).pixels
    assert isinstance(flat, Image.Image)
    assert flat.getpixel((0, 0)) == (10, 20, 30)
    assert flat.getpixel((1, 0)) != (10, 20, 30)
