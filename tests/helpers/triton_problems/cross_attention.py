"""How cross-attention is launched: forward and backward, both widths of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.cross_attention import triton

MATRIX = {"forward_kernel", "queries_kernel", "pairs_kernel"}


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    lengths = torch.tensor([577, 0])
    for width, key_lengths in ((64, None), (64, lengths), (88, None), (88, lengths)):
        q = torch.zeros(30, 12, width, dtype=dtype)
        memory = torch.zeros(2, 577, 2, 12, width, dtype=dtype)
        texts = torch.tensor([0, 20, 30], dtype=torch.int32), torch.tensor([1, 0]), key_lengths
        yield partial(_run, q, memory, *texts)


def smallest(dtype: torch.dtype) -> None:
    q, memory = torch.zeros(1, 1, 64, dtype=dtype), torch.zeros(1, 1, 2, 1, 64, dtype=dtype)
    texts = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0])
    for key_lengths in (None, torch.tensor([1])):
        _run(q, memory, *texts, key_lengths)


def _run(q: torch.Tensor, memory: torch.Tensor, *texts: torch.Tensor | None) -> None:
    out, logsumexp = triton.cross_attention(q, memory, *texts)
    triton.cross_attention_backward(out, q, memory, out, logsumexp, *texts)
