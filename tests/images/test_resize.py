"""The fast way and Pillow's give the same square, upright, in every orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps

from blip_fast.images import Decoded, ImageOptions, decode, read_picture, resize

BICUBIC = Image.Resampling.BICUBIC
ORDERS_PASSES = int(PIL.__version__.split(".")[0]) >= 13


def differences(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many values differ by 0, 1, 2, ... grey levels."""
    return torch.bincount((a.int() - b.int()).abs().flatten())


@pytest.mark.parametrize("size, share", [(224, 0.0), (384, 1e-6), (480, 1e-5)])
def test_fast_way_against_pillow_on_photos(photos: list[Path], size: int, share: float) -> None:
    """One grey level apart at most; by torch's coarser weights two, in the stated share."""
    counts = torch.zeros(256, dtype=torch.int64)
    for photo in photos:
        fast, slow = (
            read_picture(photo, ImageOptions(size=size, decoder=decoder))
            for decoder in ("simplejpeg", "pillow")
        )
        assert fast.pixels is not None and slow.pixels is not None
        found = differences(fast.pixels, slow.pixels)
        counts[: len(found)] += found
    assert counts[3:].sum() == 0
    assert counts[2] <= share * counts.sum()
    assert counts[1] <= 0.005 * counts.sum()


@pytest.mark.skipif(not ORDERS_PASSES, reason="Pillow before 13 always filters rows first")
def test_pillows_way_is_pillows_own(photos: list[Path]) -> None:
    for photo in photos:
        own = read_picture(photo, ImageOptions(decoder="pillow")).pixels
        with Image.open(photo) as image:
            expected = np.array(image.convert("RGB").resize((384, 384), BICUBIC))
        assert torch.equal(own, torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.skipif(not ORDERS_PASSES, reason="Pillow before 13 always filters rows first")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(90, 200), (200, 90), (150, 150), (40, 30), (64, 300)])
def test_upright_like_pillow(orientation: int, shape: tuple[int, int]) -> None:
    """Turned after resizing, and still what Pillow gives when it turns first."""
    hard = torch.randint(0, 2, (*shape, 3)).mul(255).to(torch.uint8)
    image = Image.fromarray(hard.numpy())
    image.getexif()[274] = orientation
    upright = ImageOps.exif_transpose(image)
    expected = torch.from_numpy(np.array(upright.resize((64, 64), BICUBIC))).permute(2, 0, 1)
    for pixels in (hard.permute(2, 0, 1), image):
        decoded = Decoded(pixels, orientation)
        assert decoded.size == upright.size
        found = differences(resize(decoded, 64), expected)
        limit = 2 if isinstance(pixels, torch.Tensor) else 1
        assert len(found) <= limit + 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 64), (64, 64)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    flat = torch.full((3, *shape), 77, dtype=torch.uint8)
    image = Image.new("RGB", shape[::-1], (77, 77, 77))
    for pixels in (flat, image):
        square = resize(Decoded(pixels), 64)
        assert square.shape == (3, 64, 64) and square.unique().tolist() == [77]


def test_result_has_memory_of_its_own() -> None:
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    square = resize(Decoded(pixels), 32)
    assert torch.equal(square, pixels) and square.is_contiguous()
    square.zero_()
    assert pixels.any()


def test_grey_has_three_channels(tmp_path: Path) -> None:
    Image.new("L", (5, 9), 40).save(tmp_path / "grey.png")
    square = resize(decode((tmp_path / "grey.png").read_bytes(), ImageOptions()), 16)
    assert square.shape == (3, 16, 16) and square.unique().tolist() == [40]
