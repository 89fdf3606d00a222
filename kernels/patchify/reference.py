"""Patches in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(
    images: Tensor,
    patch_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
) -> Tensor:
    """Normalise in fp32, then cut."""
    n, channels, height, width = images.shape
    if images.dtype == torch.uint8:
        shift = torch.tensor(mean, device=images.device).view(1, channels, 1, 1)
        scale = torch.tensor(std, device=images.device).view(1, channels, 1, 1)
        images = (images.to(torch.float32) / 255 - shift) / scale
    rows, columns = height // patch_size, width // patch_size
    patches = images.to(dtype).view(n, channels, rows, patch_size, columns, patch_size)
    patches = patches.permute(0, 2, 4, 1, 3, 5)  # n, row, column, channel, y, x
    return patches.reshape(n * rows * columns, channels * patch_size**2)
