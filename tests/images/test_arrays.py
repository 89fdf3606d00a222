"""Arrays, tensors and Pillow images: the same picture whatever holds it, or a clear refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from blip_fast.images import ImageOptions, Picture, Status, read_picture

OPTIONS = ImageOptions(size=32)
RGB = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)


def read(source: object, options: ImageOptions = OPTIONS) -> Picture:
    return read_picture(source, options)


def pixels(source: object, options: ImageOptions = OPTIONS) -> torch.Tensor:
    picture = read(source, options)
    assert picture.status is Status.SUCCESS and picture.pixels is not None, picture.error
    return picture.pixels.int()


def test_one_picture_in_every_holder() -> None:
    expected = pixels(Image.fromarray(RGB))
    frozen = RGB.copy()
    frozen.flags.writeable = False
    tensor = torch.from_numpy(RGB.copy()).permute(2, 0, 1)
    holders = [RGB, frozen, RGB[::-1][::-1], np.asfortranarray(RGB), tensor, tensor.contiguous()]
    for holder in holders:
        assert (pixels(holder) - expected).abs().max() <= 2
        assert (read(holder).width, read(holder).height) == (40, 50)


def test_grey_in_every_holder() -> None:
    grey = RGB[:, :, 0]
    expected = pixels(Image.fromarray(grey))
    assert torch.equal(expected[0], expected[2])
    for holder in (grey, grey[:, :, None], torch.from_numpy(grey.copy())[None]):
        assert (pixels(holder) - expected).abs().max() <= 2


def test_alpha_in_arrays() -> None:
    clear = np.dstack([RGB, np.zeros((50, 40), np.uint8)])
    for array in (clear, clear[:, :, 2:]):
        assert pixels(array).unique().tolist() == [255]
        assert pixels(array, ImageOptions(size=32, background="black")).unique().tolist() == [0]


def test_a_pillow_image_is_turned_and_left_alone() -> None:
    image = Image.fromarray(RGB)
    image.getexif()[274] = 6
    assert (read(image).width, read(image).height) == (50, 40)
    assert torch.equal(pixels(image), pixels(image.transpose(Image.Transpose.ROTATE_270)))
    assert image.size == (40, 50) and image.getexif()[274] == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_are_model_input(dtype: torch.dtype) -> None:
    given = torch.randn(3, 32, 32).to(dtype).requires_grad_()
    picture = read(given)
    assert picture.pixels is not None and picture.pixels.dtype == torch.float32
    assert torch.equal(picture.pixels, given.detach().float())
    assert not picture.pixels.requires_grad
    assert picture.pixels.data_ptr() != given.data_ptr()
    assert (picture.width, picture.height) == (32, 32)


NOT_A_NUMBER = torch.zeros(3, 32, 32).index_fill(1, torch.tensor([4]), float("nan"))


@pytest.mark.parametrize(
    "source, words",
    [
        (RGB.astype(np.float32), ["float32", "uint8"]),
        (RGB.astype(np.uint16), ["uint16"]),
        (RGB.transpose(2, 0, 1), ["[3, 50, 40]", "transpose(1, 2, 0)"]),
        (RGB[None], ["[1, 50, 40, 3]"]),
        (RGB[:0], ["40 x 0"]),
        (torch.from_numpy(RGB), ["[50, 40, 3]", "permute(2, 0, 1)"]),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), ["[4, 8, 8]"]),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), ["8 x 0"]),
        (torch.zeros(3, 8, 8, dtype=torch.int64), ["int64"]),
        (torch.zeros(3, 24, 32), ["[3, 24, 32]", "[3, 32, 32]"]),
        (torch.zeros(32, 32, 3), ["[32, 32, 3]", "permute(2, 0, 1)"]),
        (torch.zeros(1, 3, 32, 32), ["[1, 3, 32, 32]"]),
        (NOT_A_NUMBER, ["not finite"]),
    ],
)
def test_refusals_name_what_is_wrong(source: object, words: list[str]) -> None:
    picture = read(source)
    assert (picture.status, picture.pixels) == (Status.FAILED_TO_DECODE, None)
    assert all(word in picture.error for word in words), picture.error


@pytest.mark.parametrize("source", [RGB, Image.fromarray(RGB), torch.zeros(3, 50, 40).byte()])
def test_the_limit_on_pixels_holds_in_memory(source: object) -> None:
    assert read(source, ImageOptions(max_pixels=1999)).status is Status.TOO_LARGE
    assert read(source, ImageOptions(max_pixels=2000)).status is Status.SUCCESS
