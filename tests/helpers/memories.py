"""What the tests of both rooms of attention to memory share: paths, formulas, memory with NaN."""

from __future__ import annotations

from itertools import accumulate

import torch
from forcing import ISAS, TILES
from oracles import attend
from torch import Tensor

NATIVE_PATHS = (*ISAS, *TILES)
PATHS = ("reference", *NATIVE_PATHS)
DTYPES = (torch.float32, torch.bfloat16)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def attend_to_memories(
    q: Tensor, memory: Tensor, lengths: list[int], index: list[int], keys: list[int] | None
) -> Tensor:
    """Text by text: rows of q [T, H, D] attend to the first keys of their memory."""
    parts = [q[:0]]
    for rows, m in zip(q.split(lengths), index, strict=True):
        count = memory.shape[1] if keys is None else keys[m]
        k, v = memory[m, :count].unbind(1)
        parts.append(attend(rows, k, v, causal=False) if count and len(rows) else 0 * rows)
    return torch.cat(parts)


def between_nans(t: Tensor) -> Tensor:
    """The same values, with NaN before and after, so that a read past the end shows."""
    flat = torch.full((t.numel() + 1024,), torch.nan, dtype=t.dtype)
    return flat[512 : 512 + t.numel()].view(t.shape).copy_(t)
