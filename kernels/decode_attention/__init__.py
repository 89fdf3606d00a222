"""Attention of the newest token of each live sequence: to its own past, and to its memory.

The past is never reordered: `ancestors` says in which row of the cache each earlier position of a
sequence was written, so beams of one image share their common beginning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, Room, register_fake, register_triton
from blip_fast.kernels.cross_attention import choose, dense_heads
from blip_fast.kernels.decode_attention import config, reference

_room = Room(
    "decode_attention",
    native=(torch.float32, torch.bfloat16),
    triton=(torch.float32, torch.bfloat16, torch.float16),
    cuda=(torch.float32, torch.bfloat16, torch.float16),
)


def decode_attention(q: Tensor, cache: Tensor, ancestors: Tensor, lengths: Tensor) -> Tensor:
    """Attention of one query a sequence to the sequence's own past.

    Args:
        q: [B, H, D], the newest token of each sequence.
        cache: [R, P, 2, H, D]: keys and values of R rows at P positions, the newest included.
        ancestors: [B, P] int64: position p of sequence b lies at cache[ancestors[b, p], p].
        lengths: [B] int64, positions of each sequence that count, at least 1.

    Returns:
        [B, H, D] in q's dtype.

    Raises:
        ValueError: where shapes do not fit.
    """
    _check(q, cache, "cache")
    if ancestors.shape != (q.shape[0], cache.shape[1]):
        raise ValueError(
            f"{q.shape[0]} sequences and {cache.shape[1]} positions need ancestors of that shape; "
            f"they are {tuple(ancestors.shape)}"
        )
    chosen = choose(_room, q, _obstacle(q, cache), config.cuda_obstacle(q.shape[-1]))
    if chosen == REFERENCE:
        return reference.decode_attention(q, cache, ancestors, lengths)
    result: Tensor = _room.operator(chosen)(
        q.contiguous(), dense_heads(cache), ancestors.contiguous(), lengths.contiguous()
    )
    return result


def decode_cross_attention(
    q: Tensor, memory: Tensor, index: Tensor, key_lengths: Tensor | None = None
) -> Tensor:
    """Attention of one query a sequence to the memory that it points at.

    Args:
        q: [B, H, D].
        memory: [M, K, 2, H, D].
        index: [B] int64: the memory of each sequence, in 0..M-1.
        key_lengths: [M] int64: how many tokens of each memory count; all where none is given.

    Returns:
        [B, H, D] in q's dtype.

    Raises:
        ValueError: where shapes do not fit.
    """
    _check(q, memory, "memory")
    if index.shape != q.shape[:1]:
        raise ValueError(f"{q.shape[0]} queries need as many indices; there are {index.numel()}")
    chosen = choose(_room, q, _obstacle(q, memory), config.cuda_obstacle(q.shape[-1]))
    if chosen == REFERENCE:
        return reference.decode_cross_attention(q, memory, index, key_lengths)
    lengths = None if key_lengths is None else key_lengths.contiguous()
    result: Tensor = _room.operator(chosen, "decode_cross_attention")(
        q.contiguous(), dense_heads(memory), index.contiguous(), lengths
    )
    return result


def _obstacle(q: Tensor, pairs: Tensor) -> str:
    """What keeps the native code from this call beside its device and dtype."""
    if torch.is_grad_enabled() and (q.requires_grad or pairs.requires_grad):
        return "decoding has no native gradient; use torch.no_grad() or the reference"
    return ""


def _check(q: Tensor, pairs: Tensor, name: str) -> None:
    if pairs.ndim != 5 or pairs.shape[2] != 2 or pairs.shape[3:] != q.shape[1:]:
        raise ValueError(
            f"q {tuple(q.shape)} needs a {name} of shape (*, *, 2, {q.shape[1]}, {q.shape[2]}); "
            f"it is {tuple(pairs.shape)}"
        )
    if pairs.dtype != q.dtype:
        raise ValueError(f"q is {q.dtype} and its {name} {pairs.dtype}; they must agree")


def _fake(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


register_fake("decode_attention", _fake)
register_fake("decode_cross_attention", _fake)
register_triton("decode_attention", "decode_attention", "decode_cross_attention")
