"""Pixels to normalised patch rows in one pass; the patch embedding is then a `linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, Room, register_fake, register_triton
from blip_fast.kernels.patchify import reference

_room = Room("patchify", native=(torch.uint8,), triton=(torch.uint8,))
_OPAQUE = ("native", "triton")
_RESULTS = (torch.float32, torch.bfloat16, torch.float16)


def patchify(
    images: Tensor,
    patch_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
) -> Tensor:
    """Cut images into patches and normalise them.

    Args:
        images: [N, 3, H, W]. uint8 in 0..255 is scaled to 0..1 and normalised by `mean` and
            `std`; a floating dtype counts as normalised already.
        patch_size: side of a patch P in pixels; H and W are multiples of it.
        mean, std: per channel, of pixels in 0..1.
        dtype: of the result.

    Returns:
        [N * H/P * W/P, 3 * P * P]: patches row by row, and in a patch channel, row, column: the
        order in which a convolution's weight is stored.

    Raises:
        ValueError: where the shape is not as above.
        RuntimeError: where the implementation asked for by name has no results of such a dtype.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [N, 3, H, W]; the shape is {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height} x {width} pixels do not divide into patches of {patch_size}"
        )
    chosen = _room.choose(images, order=_OPAQUE if dtype in _RESULTS else ())
    if chosen == REFERENCE:
        return reference.patchify(images, patch_size, mean, std, dtype)
    patches: Tensor = _room.operator(chosen)(images.contiguous(), patch_size, mean, std, dtype)
    return patches


def _fake(
    images: Tensor, patch_size: int, mean: list[float], std: list[float], dtype: torch.dtype
) -> Tensor:
    n, channels, height, width = images.shape
    patches = n * (height // patch_size) * (width // patch_size)
    return images.new_empty(patches, channels * patch_size**2, dtype=dtype)


register_triton("patchify")
register_fake("patchify", _fake)
