"""Patches in Triton: every value as exact as torch's, at every place."""

from __future__ import annotations

import pytest
import torch
from forcing import Recorder
from tolerance import assert_close_as_torch, wide
from torch import Tensor

from blip_fast import kernels
from blip_fast.config import IMAGE_MEAN, IMAGE_STD
from blip_fast.kernels.patchify import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _asked_for():
    with kernels.use("triton", "patchify"):
        yield


def _pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def _truth(images: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    shift, scale = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    normalised = (images.double() / 255 - shift) / scale
    return reference.patchify(normalised, size, IMAGE_MEAN, IMAGE_STD, wide(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "rows", "columns", "n"),
    [
        (16, 3, 2, 2), (16, 2, 24, 1), (1, 5, 7, 1), (3, 2, 5, 3), (14, 2, 9, 1), (19, 1, 3, 2),
        (32, 1, 1, 1), (70, 1, 1, 1),
    ],
)  # fmt: skip
def test_every_value_is_as_exact_as_torch(
    size: int, rows: int, columns: int, n: int, dtype: torch.dtype
) -> None:
    images = _pixels(n, 3, rows * size, columns * size)
    images.view(-1)[:3] = torch.tensor([0, 255, 128], dtype=torch.uint8)
    with Recorder() as recorder:
        actual = kernels.patchify(images, size, IMAGE_MEAN, IMAGE_STD, dtype)
    assert recorder.names == ["blip_fast.patchify.triton"]
    assert actual.equal(kernels.patchify(images, size, IMAGE_MEAN, IMAGE_STD, dtype))
    same = reference.patchify(images, size, IMAGE_MEAN, IMAGE_STD, dtype)
    assert_close_as_torch(f"{size} {dtype}", actual, same, _truth(images, size, dtype))


def test_no_images_and_other_layouts() -> None:
    empty = kernels.patchify(_pixels(0, 3, 32, 32), 16, IMAGE_MEAN, IMAGE_STD, torch.bfloat16)
    assert empty.shape == (0, 768)
    images = _pixels(2, 32, 48, 3).permute(0, 3, 1, 2)
    actual = kernels.patchify(images, 16, IMAGE_MEAN, IMAGE_STD, torch.float32)
    dense = kernels.patchify(images.contiguous(), 16, IMAGE_MEAN, IMAGE_STD, torch.float32)
    assert actual.equal(dense)


def test_what_it_does_not_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="it computes uint8, not float32"):
        kernels.patchify(torch.zeros(1, 3, 8, 8), 8, IMAGE_MEAN, IMAGE_STD, torch.float32)
    with pytest.raises(RuntimeError, match="expected float32, bfloat16 or float16"):
        kernels.patchify(_pixels(1, 3, 8, 8), 8, IMAGE_MEAN, IMAGE_STD, torch.float64)


def test_operator_is_sound_and_compiles_whole() -> None:
    images = _pixels(2, 3, 16, 24)
    operator = torch.ops.blip_fast.patchify.triton
    torch.library.opcheck(operator, (images, 8, IMAGE_MEAN, IMAGE_STD, torch.bfloat16))

    def embed(images: Tensor) -> Tensor:
        return kernels.patchify(images, 8, IMAGE_MEAN, IMAGE_STD, torch.bfloat16) * 2

    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    assert compiled(images).equal(embed(images))
