from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from blip_fast.images import ImageOptions, decode
from blip_fast.images.fingerprint import fingerprint, of_square

NEAR = 6  # bits, as `blip_fast.data.alike` has it


def bits(image: Image.Image, quality: int = 90) -> int:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    found = fingerprint(decode(file.getvalue(), ImageOptions()))
    assert found is not None
    return found


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "fifth": lambda image: image.resize((image.width // 5, image.height // 5)),
    "other shape": lambda image: image.resize((300, 300)),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_copies_of_photos_are_near(name: str, photos: list[Path]) -> None:
    for path in photos[:20]:
        with Image.open(path) as image:
            whole = image.convert("RGB")
        assert (bits(whole) ^ bits(CHANGES[name](whole), 70)).bit_count() <= NEAR, path.name


def test_photos_are_far_from_each_other(photos: list[Path]) -> None:
    found = [fingerprint(decode(path.read_bytes(), ImageOptions())) for path in photos]
    codes = [code for code in found if code is not None]
    assert len(codes) == len(photos) == 80
    distances = [(a ^ b).bit_count() for i, a in enumerate(codes) for b in codes[:i]]
    assert min(distances) > 2 * NEAR


def test_pictures_of_no_detail_have_none() -> None:
    assert of_square(torch.full((3, 32, 32), 200, dtype=torch.uint8)) is None
    noise = torch.randint(126, 130, (3, 32, 32), dtype=torch.uint8)
    assert of_square(noise) is None


def test_frequencies_are_those_of_the_cosine_transform() -> None:
    """A wave that is one of the basis has its own bit, and no other that is certain."""
    place = np.arange(32) + 0.5
    wave = np.cos(np.pi / 32 * 3 * place)[:, None] * np.cos(np.pi / 32 * 5 * place)
    pixels = torch.from_numpy(np.uint8(128 + 100 * wave)).expand(3, 32, 32)
    code = of_square(pixels)
    assert code is not None and code >> (63 - (3 * 8 + 5)) & 1
    inverse = of_square(255 - pixels)
    assert inverse is not None and not inverse >> (63 - (3 * 8 + 5)) & 1
