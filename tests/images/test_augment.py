"""The training augmentation against its definition, pixel by pixel, and against Pillow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from blip_fast.images import Augment, Decoded, ImageOptions, decode, resize
from blip_fast.images import augment as augment_module
from blip_fast.images.augment import autocontrast, crop, equalize, random_box, random_changes
from blip_fast.images.resize import set_upright
from blip_fast.images.warp import rotation, shear, warp

NAMES = (
    "identity autocontrast brightness sharpness equalize "
    "shear_x shear_y translate_x translate_y rotate"
).split()
CHANGES = dict(zip(NAMES, augment_module._CHANGES, strict=True))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [3, H, W]"""
    return np.random.RandomState(seed).randint(0, 256, (3, height, width)).astype(np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """uint8 [3, H, W] without edges, so that a shift by 1/64 of a pixel changes little."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + c) * np.cos(y / 11 - c) for c in range(3)]
    return np.rint(127.5 + 120 * np.stack(waves)).astype(np.uint8)


def plain_warp(pixels: np.ndarray, matrix: np.ndarray, fill: int, exact: bool) -> np.ndarray:
    """Each pixel on its own; `exact` to any fraction of a pixel, else to 1/32 of one."""
    channels, height, width = pixels.shape
    (a, b, c), (d, e, f) = matrix.tolist()
    det = a * e - b * d
    inverse = [
        [e / det, -b / det, (b * f - c * e) / det],
        [-d / det, a / det, (c * d - a * f) / det],
    ]

    def at(channel: int, y: int, x: int) -> int:
        inside = 0 <= x < width and 0 <= y < height
        return int(pixels[channel, y, x]) if inside else fill

    out = np.empty(pixels.shape, np.float64)
    for y in range(height):
        for x in range(width):
            if exact:
                sx, sy = (m[0] * x + m[1] * y + m[2] for m in inverse)
            else:
                sx, sy = (
                    ((round(m[0] * x * 1024) + round((m[1] * y + m[2]) * 1024) + 16) // 32) / 32
                    for m in inverse
                )
            x0, y0 = math.floor(sx), math.floor(sy)
            u, v = sx - x0, sy - y0
            for channel in range(channels):
                top = at(channel, y0, x0) * (1 - u) + at(channel, y0, x0 + 1) * u
                bottom = at(channel, y0 + 1, x0) * (1 - u) + at(channel, y0 + 1, x0 + 1) * u
                out[channel, y, x] = math.floor(top * (1 - v) + bottom * v + 0.5)
    return out


MATRICES: dict[str, Callable[[int, int], np.ndarray]] = {
    "shear_x": lambda w, h: shear(0.15, 0),
    "shear_x back": lambda w, h: shear(-0.15, 0),
    "shear_y": lambda w, h: shear(0, 0.15),
    "shear_y back": lambda w, h: shear(0, -0.15),
    "rotate": lambda w, h: rotation(15, w, h),
    "rotate back": lambda w, h: rotation(-15, w, h),
    "far away": lambda w, h: rotation(170, 5 * w, -3 * h),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (24, 9)])
def test_warp_is_its_definition_to_the_bit(name: str, height: int, width: int) -> None:
    """Equal to OpenCV 4.10 as well, on all 80 photos at 224 and 385 pixels; 5 is more exact."""
    pixels, matrix = noise(height, width), MATRICES[name](width, height)
    assert np.array_equal(warp(pixels, matrix, 128), plain_warp(pixels, matrix, 128, exact=False))


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
def test_warp_is_within_a_step_of_the_exact_one(name: str) -> None:
    """A point is off by 1/64 of a pixel and twice 1/2048, the values here rise by 14 at most."""
    pixels, matrix = smooth(40, 56), MATRICES[name](56, 40)
    error = np.abs(warp(pixels, matrix, 128) - plain_warp(pixels, matrix, 128, exact=True))
    inside = warp(np.zeros_like(pixels), matrix, 255) == 0  # at the border values jump
    assert error[inside].max() <= math.ceil(2 * 14 * (1 / 64 + 2 / 2048))
    assert inside.mean() > 0.7


def test_rotation_is_anticlockwise_and_shear_moves_lower_rows_right() -> None:
    """The directions of OpenCV's matrices, on a picture with one bright spot."""
    spot = np.zeros((3, 41, 41), np.uint8)
    spot[:, 20, 35] = 255  # right of the middle
    y, x = np.unravel_index(warp(spot, rotation(15, 41, 41), 0)[0].argmax(), (41, 41))
    assert y < 20 and 33 <= x <= 36  # went up
    y, x = np.unravel_index(warp(spot, shear(0.15, 0), 0)[0].argmax(), (41, 41))
    assert (y, x) == (20, 38)


def test_translation_moves_left_and_up_and_fills_with_grey() -> None:
    pixels = noise(20, 30)
    left, right = CHANGES["translate_x"](pixels, 1), CHANGES["translate_x"](pixels, -1)
    assert np.array_equal(left[:, :, :25], pixels[:, :, 5:]) and (left[:, :, 25:] == 128).all()
    assert np.array_equal(right[:, :, 5:], pixels[:, :, :25]) and (right[:, :, :5] == 128).all()
    up, down = CHANGES["translate_y"](pixels, 1), CHANGES["translate_y"](pixels, -1)
    assert np.array_equal(up[:, :15], pixels[:, 5:]) and (up[:, 15:] == 128).all()
    assert np.array_equal(down[:, 5:], pixels[:, :15]) and (down[:, :5] == 128).all()
    assert (CHANGES["translate_x"](noise(3, 4), 1) == 128).all()  # all of it moves out


def as_pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@pytest.mark.parametrize("kind", ["noise", "dim", "flat", "two levels", "one pixel", "few"])
def test_autocontrast_and_equalize_are_those_of_pillow(kind: str) -> None:
    pixels = {
        "noise": noise(64, 50),
        "dim": noise(64, 50) // 3 + 40,
        "flat": np.full((3, 30, 30), 77, np.uint8),
        "two levels": (noise(40, 40) > 200).astype(np.uint8) * 90 + 10,
        "one pixel": noise(1, 1),
        "few": noise(5, 5),  # too few for the steps of equalize
    }[kind]
    before = pixels.copy()
    for ours, theirs in ((autocontrast, ImageOps.autocontrast), (equalize, ImageOps.equalize)):
        expected = np.asarray(theirs(as_pillow(pixels))).transpose(2, 0, 1)
        assert np.array_equal(ours(pixels), expected), ours.__name__
    assert np.array_equal(pixels, before)


def test_mirrored_input_is_taken_by_every_change() -> None:
    """A flip is a view with negative strides."""
    pixels = noise(12, 17)
    for name, change in CHANGES.items():
        view = pixels[:, :, ::-1]
        assert np.array_equal(change(view, 1), change(view.copy(), 1)), name


def test_changes_come_as_often_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of ten: two draws, carried out half the time, each sign half of that."""
    seen: Counter[tuple[str, int]] = Counter()

    def noting(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
        def change(pixels: np.ndarray, sign: int) -> np.ndarray:
            seen[name, sign] += 1
            return pixels

        return change

    monkeypatch.setattr(augment_module, "_CHANGES", tuple(map(noting, NAMES)))
    times = 20_000
    for seed in range(times):
        random_changes(noise(1, 1), Random(seed))
    expected = times * 2 * 0.5 / 10 / 2
    assert len(seen) == 20
    assert max(abs(n - expected) for n in seen.values()) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("min_scale", [0.2, 0.5])
def test_boxes_have_the_area_and_shape_they_should(min_scale: float) -> None:
    boxes = np.array([random_box(640, 480, min_scale, Random(seed)) for seed in range(3000)])
    left, top, w, h = boxes.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + w <= 640).all() and (top + h <= 480).all()
    area, ratio = w * h / (640 * 480), w / h
    assert min_scale * 0.99 < area.min() < min_scale * 1.05 and area.max() > 0.95
    assert ratio.min() > 0.745 and ratio.max() < 1.342
    assert {0} < set(left.tolist()) and (left + w == 640).any() and (top + h == 480).any()


def test_boxes_as_torchvision_draws_them() -> None:
    """Area uniform in [min_scale, 1], ratio uniform in its logarithm, of those that fit."""
    random, areas = Random(0), []
    while len(areas) < 20_000:
        area = random.uniform(0.2, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        if math.sqrt(area * ratio) <= 1 and math.sqrt(area / ratio) <= 1:
            areas.append(area)
    ours = [math.prod(random_box(5000, 5000, 0.2, Random(s))[2:]) / 5000**2 for s in range(20_000)]
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        # 20,000 draws on each side: the share below the other's quantile is good to 5 sigma
        share = np.mean(np.array(ours) < np.quantile(areas, quantile))
        assert abs(share - quantile) < 5 * math.sqrt(2 * quantile * (1 - quantile) / 20_000)


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))],
)
def test_pictures_too_long_give_their_middle(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert random_box(*size, 1.0, Random(0)) == box


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_is_that_of_the_upright_picture(orientation: int) -> None:
    stored = torch.from_numpy(noise(40, 56))
    upright = set_upright(stored, orientation)
    box = left, top, w, h = 3, 7, 20, 31
    part = crop(Decoded(stored, orientation), box)
    assert part.size == (w, h)
    assert torch.equal(
        set_upright(part.pixels, part.orientation), upright[:, top : top + h, left : left + w]
    )
    pillow = crop(Decoded(as_pillow(stored.numpy()), orientation), box)
    assert np.array_equal(np.asarray(pillow.pixels).transpose(2, 0, 1), part.pixels.numpy())


def expected_picture(image: Decoded, seed: int, size: int, min_scale: float) -> torch.Tensor:
    """Crop, resize, mirror and changes, step by step on the upright picture."""
    random = Random(seed)
    left, top, w, h = random_box(*image.size, min_scale, random)
    assert isinstance(image.pixels, torch.Tensor)
    upright = set_upright(image.pixels, image.orientation)
    pixels = resize(Decoded(upright[:, top : top + h, left : left + w].clone()), size)
    if random.random() < 0.5:
        pixels = pixels.flip(2)
    return torch.from_numpy(random_changes(pixels.numpy(), random))


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_whole_is_the_sum_of_its_parts(orientation: int) -> None:
    image = Decoded(torch.from_numpy(smooth(90, 130)), orientation)
    before = image.pixels.clone()
    for seed in range(20):
        found = Augment(32, 0.2)(image, seed)
        assert found.shape == (3, 32, 32) and found.dtype == torch.uint8 and found.is_contiguous()
        assert torch.equal(found, expected_picture(image, seed, 32, 0.2))
        assert torch.equal(found, Augment(32, 0.2)(image, seed))
    assert torch.equal(image.pixels, before)
    assert not torch.equal(Augment(32, 0.2)(image, 1), Augment(32, 0.2)(image, 2))


def test_half_of_all_pictures_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment_module, "random_changes", lambda pixels, random: pixels)
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    falls = sum(
        bool(view[0, 0, 0] > view[0, 0, -1])
        for view in (Augment(8)(Decoded(ramp), seed) for seed in range(400))
    )
    assert abs(falls - 200) < 5 * math.sqrt(400 * 0.25)


def test_grey_and_tiny_pictures() -> None:
    grey = Decoded(Image.new("L", (30, 20), 200))
    assert Augment(16)(grey, 1).shape == (3, 16, 16)
    assert Augment(16)(Decoded(torch.zeros(3, 1, 1, dtype=torch.uint8)), 3).shape == (3, 16, 16)


def test_photos_through_both_decoders(photos: list[Path]) -> None:
    """Torch's filter and Pillow's differ by two grey levels at most, before tables spread them."""
    data = photos[0].read_bytes()
    for seed in range(3):
        ours, theirs = (
            resize(crop(image, random_box(*image.size, 0.5, Random(seed))), 96).int()
            for image in (
                decode(data, ImageOptions(decoder="simplejpeg")),
                decode(data, ImageOptions(decoder="pillow")),
            )
        )
        assert (ours - theirs).abs().max() <= 2


def test_settings_are_checked() -> None:
    for size, min_scale in ((0, 0.5), (224, 0.0), (224, 1.5)):
        with pytest.raises(ValueError, match=f"size is {size} and min_scale {min_scale}"):
            Augment(size, min_scale)
