"""Attention of one query a sequence in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast.kernels.cross_attention.reference import attend_by_row


def decode_attention(q: Tensor, cache: Tensor, ancestors: Tensor, lengths: Tensor) -> Tensor:
    """[B, H, D] against [R, P, 2, H, D] -> [B, H, D]."""
    place = torch.arange(cache.shape[1], device=q.device)
    past = cache[ancestors, place]  # [B, P, 2, H, D]
    k, v = past.permute(2, 0, 3, 1, 4)  # each [B, H, P, D]
    mask = (place < lengths[:, None])[:, None, None, :]
    return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask)[:, :, 0]


def decode_cross_attention(
    q: Tensor, memory: Tensor, index: Tensor, key_lengths: Tensor | None
) -> Tensor:
    """[B, H, D] against [M, K, 2, H, D] -> [B, H, D]."""
    return attend_by_row(q, memory, index, key_lengths)
