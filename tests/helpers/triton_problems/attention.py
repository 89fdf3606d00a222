"""How attention is launched: images and texts, forward and backward, both widths of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.attention import triton

MATRIX = {"forward_kernel", "queries_kernel", "pairs_kernel"}


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    offsets = torch.tensor([0, 20, 30], dtype=torch.int32)
    for width in (64, 88):
        yield partial(_run, torch.zeros(2, 577, 3, 12, width, dtype=dtype), None, 0, False)
    for width, causal in ((64, True), (64, False), (88, True)):
        yield partial(_run, torch.zeros(30, 3, 12, width, dtype=dtype), offsets, 20, causal)


def smallest(dtype: torch.dtype) -> None:
    for causal in (False, True):
        _run(torch.zeros(1, 1, 3, 1, 64, dtype=dtype), None, 0, causal)
    offsets = torch.tensor([0, 1], dtype=torch.int32)
    _run(torch.zeros(1, 3, 1, 64, dtype=dtype), offsets, 1, True)


def _run(qkv: torch.Tensor, *texts: object) -> None:
    out, logsumexp = triton.attention(qkv, *texts)
    triton.attention_backward(out, qkv, out, logsumexp, *texts)
