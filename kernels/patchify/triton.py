"""Pixels to normalised patch rows for GPUs, each byte read once and each result written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.patchify import config


@triton.jit
def patchify_kernel(
    image_ptr, out_ptr, height, width, patch_rows, patch_columns,
    scale0, scale1, scale2, shift0, shift1, shift2,
    SIZE: tl.constexpr, SIDE: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    """One program: one channel of PATCHES patches beside each other, [PATCHES, SIDE, SIDE].

    Columns of a patch are innermost on both sides, so a lane loads and stores whole vectors; its
    neighbours continue the patch, so that stores lie together. The halves of a sector that they
    do not load are in L1 when the next patch asks for them. SIDE is SIZE or the power of 2 above.
    """
    strip = tl.program_id(0)  # (image, patch row, channel), the last one fastest
    channel = strip % 3
    patch_row = strip // 3 % patch_rows
    image = strip // 3 // patch_rows
    patch = tl.program_id(1) * PATCHES + tl.arange(0, PATCHES)[:, None, None]
    y = tl.arange(0, SIDE)[None, :, None]
    x = tl.arange(0, SIDE)[None, None, :]
    inside = (patch < patch_columns) & (y < SIZE) & (x < SIZE)

    first_pixel = (image.to(tl.int64) * 3 + channel) * height + patch_row * SIZE
    pixel = tl.load(image_ptr + first_pixel * width + (y * width + patch * SIZE + x), mask=inside)
    # (pixel / 255 - mean) / std as one multiplication and one addition.
    scale = tl.where(channel == 0, scale0, tl.where(channel == 1, scale1, scale2))
    shift = tl.where(channel == 0, shift0, tl.where(channel == 1, shift1, shift2))
    value = pixel.to(tl.float32) * scale + shift

    first_patch = (image.to(tl.int64) * patch_rows + patch_row) * patch_columns
    area = SIZE * SIZE
    place = first_patch * (3 * area) + (patch * (3 * area) + channel * area + y * SIZE + x)
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=inside)


def patchify(
    images: Tensor, patch_size: int, mean: list[float], std: list[float], dtype: torch.dtype
) -> Tensor:
    """The operator: uint8 [N, 3, H, W], contiguous, to [N * patches, 3 * patch_size ** 2]."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise RuntimeError(f"patchify: expected float32, bfloat16 or float16, not {dtype}")
    n, _, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    out = images.new_empty(n * rows * columns, 3 * patch_size**2, dtype=dtype)
    if not out.numel():
        return out
    scales = [1 / (255 * s) for s in std]
    shifts = [-m / s for m, s in zip(mean, std, strict=True)]
    launch = config.launch(patch_size, columns)
    patchify_kernel[(n * rows * 3, triton.cdiv(columns, launch["PATCHES"]))](
        images, out, height, width, rows, columns, *scales, *shifts, SIZE=patch_size, **launch
    )
    return out
