"""Self-attention in plain PyTorch: packed sequences are padded, attended and unpacked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dense_attention(qkv: Tensor, causal: bool) -> Tensor:
    """[N, S, 3, H, D] -> [N, S, H, D]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, S, D]
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def packed_attention(qkv: Tensor, offsets: Tensor, max_length: int, causal: bool) -> Tensor:
    """[T, 3, H, D] -> [T, H, D]."""
    if qkv.shape[0] == 0:
        return qkv[:, 0]
    lengths = offsets.diff()
    place = torch.arange(max_length, device=qkv.device)
    inside = place < lengths[:, None]  # [N, S]
    padded = qkv.new_zeros(*inside.shape, *qkv.shape[1:])
    padded[inside] = qkv
    q, k, v = padded.permute(2, 0, 3, 1, 4)  # each [N, H, S, D]
    # Padding is looked at by padding alone, so no row of the softmax is empty.
    mask = inside[:, None, None, :] | ~inside[:, None, :, None]
    if causal:
        mask = mask & (place <= place[:, None])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2)[inside]
