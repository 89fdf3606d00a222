"""Cases of decoding attention for the gate, each against a loop over sequences: for all devices."""

from __future__ import annotations

import torch
from gate import Case
from memories import attend_to_memories
from oracles import attend
from torch import Tensor

from blip_fast import kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 4


def past(lengths: list[int], positions: int, dtype: torch.dtype, width: int = 64) -> Case:
    """Ancestors beyond a sequence's length are rows far away."""
    q = torch.randn(len(lengths), 2, width).to(dtype)
    cache = torch.randn(ROWS, positions, 2, 2, width).to(dtype)
    ancestors = torch.randint(ROWS, (len(lengths), positions))
    beyond = torch.arange(positions) >= torch.tensor(lengths).long()[:, None]
    table = ancestors.masked_fill(beyond, 1 << 40)

    def call(q: Tensor, cache: Tensor) -> Tensor:
        return kernels.decode_attention(q, cache, table, torch.tensor(lengths).long())

    def formula(high: torch.dtype, q: Tensor, cache: Tensor) -> Tensor:
        q, cache = q.to(high), cache.to(high)
        out = [q[:0]]
        for b, length in enumerate(lengths):
            kept = cache[ancestors[b, :length], torch.arange(length)]
            one = q[b : b + 1]
            out.append(attend(one, *kept.unbind(1), False) if length else 0 * one)
        return torch.cat(out)

    return Case(call, formula, {"q": q, "cache": cache}, ())


def memory(
    index: list[int],
    keys: list[int] | None,
    dtype: torch.dtype,
    size: tuple[int, int] = (70, 64),
) -> Case:
    """4 memories. What lies beyond the keys that count is NaN, but for the reference."""
    tokens, width = size
    q = torch.randn(len(index), 2, width).to(dtype)
    pairs = torch.randn(4, tokens, 2, 2, width).to(dtype)
    key_lengths = None if keys is None else torch.tensor(keys)
    beyond = torch.arange(tokens) >= torch.tensor(keys or [tokens] * 4)[:, None]

    def call(q: Tensor, memory: Tensor) -> Tensor:
        place = torch.tensor(index, dtype=torch.int64)
        hidden = memory.masked_fill(beyond[:, :, None, None, None], torch.nan)
        # `memory` itself where everything counts: its layout is under test, too.
        known = memory if keys is None else hidden
        return kernels.decode_cross_attention(q, known, place, key_lengths)

    def formula(high: torch.dtype, q: Tensor, memory: Tensor) -> Tensor:
        texts = [1] * len(index), index, keys
        return attend_to_memories(q.to(high), memory.to(high), *texts)

    return Case(call, formula, {"q": q, "memory": pairs}, ())
