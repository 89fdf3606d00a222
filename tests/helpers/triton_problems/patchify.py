"""How patchify is launched: the models' patches at 224, 384 and 480 pixels, and odd ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.patchify import triton

MATRIX: set[str] = set()


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    for size, pixels in ((16, 224), (16, 384), (16, 480), (14, 224), (32, 224), (1, 9), (96, 192)):
        images = torch.zeros(2, 3, pixels // size * size, pixels // size * size, dtype=torch.uint8)
        yield partial(triton.patchify, images, size, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], dtype)


def smallest(dtype: torch.dtype) -> None:
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    triton.patchify(images, 1, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], dtype)
