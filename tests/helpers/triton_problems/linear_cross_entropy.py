"""How the head and its loss are launched: many tokens and few, both head widths, and an odd one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.linear_cross_entropy import triton

MATRIX = {"forward_kernel", "backward_kernel"}


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    for tokens, words, width in ((240, 30524, 768), (1, 1, 1024), (17, 1000, 71)):
        for smoothing in (0.0, 0.1):
            weight, hidden = torch.zeros(words, width), torch.zeros(tokens, width)
            yield partial(_run, hidden.to(dtype), weight.to(dtype), smoothing)


def smallest(dtype: torch.dtype) -> None:
    _run(torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype), 0.1)


def _run(hidden: torch.Tensor, weight: torch.Tensor, smoothing: float) -> None:
    targets = torch.zeros(len(hidden), dtype=torch.int64)
    tensors = (hidden, weight, weight[:, 0].contiguous(), targets)
    losses, logsumexps = triton.linear_cross_entropy(*tensors, smoothing)
    losses.zero_()
    triton.linear_cross_entropy_backward(losses, *tensors, logsumexps, smoothing)
