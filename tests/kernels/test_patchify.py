"""Patches, and the linear map behind them, are the reference's normalisation and convolution."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from forcing import ISAS, Recorder, forced_path, needs_native
from tolerance import assert_close_as_torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.config import IMAGE_MEAN, IMAGE_STD
from blip_fast.kernels.patchify import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["reference", *ISAS])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then the compiled room with one instruction set after the other."""
    with forced_path(request.param, "patchify"):
        yield request.param


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def normalised(images: Tensor) -> Tensor:
    """In fp64."""
    shift = torch.tensor(IMAGE_MEAN).double().view(1, 3, 1, 1)
    scale = torch.tensor(IMAGE_STD).double().view(1, 3, 1, 1)
    return (images.double() / 255 - shift) / scale


def patches_of(images: Tensor, size: int) -> Tensor:
    """Patches row by row, each as its convolution reads it."""
    return F.unfold(images, size, stride=size).transpose(1, 2).flatten(0, 1)


def test_patches_times_weight_is_the_convolution(implementation: str) -> None:
    images = pixels(3, 3, 32, 48)
    weight = torch.randn(10, 3, 16, 16, dtype=torch.float64)
    expected = F.conv2d(normalised(images), weight, stride=16)
    rows = kernels.patchify(images, 16, IMAGE_MEAN, IMAGE_STD, torch.float32)
    actual = (rows.double() @ weight.view(10, -1).T).view(3, 2, 3, 10).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "rows", "columns", "n"),
    [(16, 3, 2, 2), (1, 5, 7, 1), (3, 2, 5, 3), (14, 2, 2, 1), (19, 1, 3, 2), (32, 1, 1, 1)],
)
def test_every_value_is_as_exact_as_torch(
    implementation: str, size: int, rows: int, columns: int, n: int, dtype: torch.dtype
) -> None:
    images = pixels(n, 3, rows * size, columns * size)
    images.view(-1)[:3] = torch.tensor([0, 255, 128], dtype=torch.uint8)
    actual = kernels.patchify(images, size, IMAGE_MEAN, IMAGE_STD, dtype)
    truth = patches_of(normalised(images), size)
    same = reference.patchify(images, size, IMAGE_MEAN, IMAGE_STD, dtype)
    if dtype != torch.float32:
        truth = truth.float()
    assert_close_as_torch(f"{implementation} {size} {dtype}", actual, same, truth)


def test_no_images_and_other_layouts(implementation: str) -> None:
    empty = kernels.patchify(pixels(0, 3, 32, 32), 16, IMAGE_MEAN, IMAGE_STD, torch.bfloat16)
    assert empty.shape == (0, 768)
    images = pixels(2, 32, 48, 3).permute(0, 3, 1, 2)
    actual = kernels.patchify(images, 16, IMAGE_MEAN, IMAGE_STD, torch.float32)
    expected = patches_of(normalised(images), 16)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)


def test_floating_images_count_as_normalised() -> None:
    images = torch.randn(2, 3, 8, 8)
    rows = kernels.patchify(images, 8, IMAGE_MEAN, IMAGE_STD, torch.float32)
    assert torch.equal(rows, images.view(2, -1))


@needs_native
def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    def call(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return kernels.patchify(images, 8, IMAGE_MEAN, IMAGE_STD, dtype)

    images = pixels(1, 3, 8, 8)
    for implementation, expected in (("native", ["blip_fast.patchify.native"]), ("reference", [])):
        with kernels.use(implementation, "patchify"), Recorder() as recorder:
            call(images)
        assert recorder.names == expected
    assert call(images, torch.float64).dtype == torch.float64
    with kernels.use("native", "patchify"):
        with pytest.raises(RuntimeError, match="expected float32, bfloat16 or float16"):
            call(images, torch.float64)
        with pytest.raises(ValueError, match="it computes uint8, not float32"):
            call(images.float())


@needs_native
def test_operator_is_sound_and_compiles_whole() -> None:
    images = pixels(2, 3, 16, 24)
    op = torch.ops.blip_fast.patchify.native
    torch.library.opcheck(op, (images, 8, IMAGE_MEAN, IMAGE_STD, torch.bfloat16))

    def embed(images: Tensor) -> Tensor:
        return kernels.patchify(images, 8, IMAGE_MEAN, IMAGE_STD, torch.bfloat16) * 2

    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    with kernels.use("native", "patchify"):
        assert compiled(images).equal(embed(images))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 8, 8, 3), r"\[N, 3, H, W\]"), ((2, 3, 8, 12), "8 x 12 pixels do not divide")],
)
def test_shapes_are_checked(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.patchify(torch.zeros(shape), 8, IMAGE_MEAN, IMAGE_STD, torch.float32)
