"""Attention of packed texts to the memory of their images, found by index, never copied."""

from __future__ import annotations

from torch import Tensor

from blip_fast.kernels._ops import Room
from blip_fast.kernels.cross_attention import reference

_room = Room("cross_attention")


def cross_attention(
    q: Tensor,
    memory: Tensor,
    offsets: Tensor,
    index: Tensor,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V, with K and V of the memory that each sequence points at.

    Args:
        q: [T, H, D], sequences one after the other.
        memory: [M, K, 2, H, D]: keys and values of M memories of K tokens.
        offsets: [N + 1] int32: sequence n is rows offsets[n] to offsets[n + 1] of `q`.
        index: [N] int64: the memory of each sequence, in 0..M-1.
        key_lengths: [M] int64: how many tokens of each memory count; all where none is given. A
            memory of length 0 gives zeros.

    Returns:
        [T, H, D] in q's dtype.

    Raises:
        ValueError: where shapes do not fit.
    """
    if memory.ndim != 5 or memory.shape[2] != 2 or memory.shape[3:] != q.shape[1:]:
        raise ValueError(
            f"q {tuple(q.shape)} needs a memory of shape (M, K, 2, {q.shape[1]}, {q.shape[2]}); "
            f"it is {tuple(memory.shape)}"
        )
    if offsets.numel() != index.numel() + 1:
        raise ValueError(
            f"{index.numel()} sequences need {index.numel() + 1} offsets; there are "
            f"{offsets.numel()}"
        )
    _room.choose(q)
    return reference.cross_attention(q, memory, offsets, index, key_lengths)
