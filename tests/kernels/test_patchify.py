"""Patches and the linear map behind them are the reference's convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.config import IMAGE_MEAN, IMAGE_STD


def test_patches_times_weight_is_the_convolution() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    weight = torch.randn(10, 3, 16, 16, dtype=torch.float64)
    shift = torch.tensor(IMAGE_MEAN).double().view(1, 3, 1, 1)
    scale = torch.tensor(IMAGE_STD).double().view(1, 3, 1, 1)
    expected = F.conv2d((images.double() / 255 - shift) / scale, weight, stride=16)
    rows = kernels.patchify(images, 16, IMAGE_MEAN, IMAGE_STD, torch.float32)
    actual = (rows.double() @ weight.view(10, -1).T).view(3, 2, 3, 10).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_floating_images_count_as_normalised() -> None:
    images = torch.randn(2, 3, 8, 8)
    rows = kernels.patchify(images, 8, IMAGE_MEAN, IMAGE_STD, torch.float32)
    assert torch.equal(rows, images.view(2, -1))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 8, 8, 3), r"\[N, 3, H, W\]"), ((2, 3, 8, 12), "8 x 12 pixels do not divide")],
)
def test_shapes_are_checked(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.patchify(torch.zeros(shape), 8, IMAGE_MEAN, IMAGE_STD, torch.float32)
