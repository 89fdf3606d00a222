"""Cross-attention by index in plain PyTorch.

Queries do not see one another, so all tokens that share a memory are rows of one attention: they
are laid side by side, and the memory is read in place.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_attention(
    q: Tensor, memory: Tensor, offsets: Tensor, index: Tensor, key_lengths: Tensor | None
) -> Tensor:
    """[T, H, D] against [M, K, 2, H, D] -> [T, H, D]."""
    return attend_by_row(q, memory, index.repeat_interleave(offsets.diff()), key_lengths)


def attend_by_row(
    q: Tensor, memory: Tensor, row_index: Tensor, key_lengths: Tensor | None
) -> Tensor:
    """Attention of each row of q [T, H, D] to memory row_index [T]."""
    if q.shape[0] == 0:
        return q
    counts = torch.bincount(row_index, minlength=memory.shape[0])
    order = torch.argsort(row_index, stable=True)
    first = counts.cumsum(0) - counts
    memory_of = row_index[order]
    seat = torch.arange(q.shape[0], device=q.device) - first[memory_of]

    # [M, most rows of one memory, H, D]: rows of a memory side by side.
    table = q.new_zeros(memory.shape[0], int(counts.max()), *q.shape[1:])
    table[memory_of, seat] = q[order]
    k, v = memory.permute(2, 0, 3, 1, 4)  # each [M, H, K, D]
    mask = None
    if key_lengths is not None:
        place = torch.arange(memory.shape[1], device=q.device)
        mask = (place < key_lengths.clamp(min=1)[:, None])[:, None, None, :]
    out = F.scaled_dot_product_attention(table.transpose(1, 2), k, v, attn_mask=mask)
    if key_lengths is not None:
        out = out * (key_lengths > 0).to(out.dtype).view(-1, 1, 1, 1)
    result = torch.empty_like(q)
    result[order] = out.transpose(1, 2)[memory_of, seat]
    return result
