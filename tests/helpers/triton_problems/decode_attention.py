"""How decoding attention is launched: to the past, to memories of one part, of 3 and of 19."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.decode_attention import triton

MATRIX = {"memory_kernel"}


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    index, lengths = torch.tensor([1, 0, 1]), torch.tensor([3, 177])
    past = torch.zeros(3, 40, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    for width in (64, 88):
        q = torch.zeros(3, 12, width, dtype=dtype)
        memory = torch.zeros(2, 4700, 2, 12, width, dtype=dtype)
        for keys in (577, 4700) if width == 64 else (577,):
            yield partial(triton.decode_cross_attention, q, memory[:, :keys], index, None)
        yield partial(triton.decode_cross_attention, q, memory[:, :177], index, lengths)
        cache = torch.zeros(3, 40, 2, 12, width, dtype=dtype)
        yield partial(triton.decode_attention, q, cache, *past)


def smallest(dtype: torch.dtype) -> None:
    q, pairs = torch.zeros(1, 1, 64, dtype=dtype), torch.zeros(1, 1, 2, 1, 64, dtype=dtype)
    one = torch.ones(1, dtype=torch.int64)
    triton.decode_attention(q, pairs, one[:, None] - 1, one)
    for key_lengths in (None, one):
        triton.decode_cross_attention(q, pairs, one - 1, key_lengths)
