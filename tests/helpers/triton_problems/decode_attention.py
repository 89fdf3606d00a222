"""How decoding attention is launched: to the past, to memories of one part and of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.decode_attention import triton

MATRIX = {"memory_kernel"}


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    index = torch.tensor([1, 0, 1])
    for width in (64, 88):
        q = torch.zeros(3, 12, width, dtype=dtype)
        memory = torch.zeros(2, 577, 2, 12, width, dtype=dtype)
        yield partial(triton.decode_cross_attention, q, memory, index, None)
    cache = torch.zeros(3, 40, 2, 12, width, dtype=dtype)
    past = torch.zeros(3, 40, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    yield partial(triton.decode_attention, q, cache, *past)
    lengths = torch.tensor([3, 177])
    yield partial(triton.decode_cross_attention, q, memory[:, :177], index, lengths)
