"""How add_layernorm is launched: rows of a base and a large model, of ViT-g and the widest, narrow
ones, and such as are no multiple of 16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.add_layernorm import config, triton

MATRIX: set[str] = set()


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    for width in (64, 768, 1023, 1024, 1408, config.MAX_WIDTH):
        for added in (True, False):
            yield partial(_run, torch.zeros(40, width, dtype=dtype), added, dtype)
    yield partial(_run, torch.zeros(40, 768, dtype=dtype), True, torch.float32)


def smallest(dtype: torch.dtype) -> None:
    _run(torch.zeros(1, 1, dtype=dtype), True, dtype)


def _run(x: torch.Tensor, added: bool, affine: torch.dtype) -> None:
    weight = torch.ones(x.shape[1], dtype=affine)
    triton.add_layernorm(x, x if added else None, weight, weight, 1e-6, added)
    triton.add_layernorm_backward(x if added else None, x, x, weight, 1e-6)
