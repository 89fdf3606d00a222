"""Attention of packed texts to the memory of their images, found by index, never copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, Room, register_fake, register_triton
from blip_fast.kernels.attention import config as widths
from blip_fast.kernels.cross_attention import reference

_room = Room(
    "cross_attention",
    native=(torch.float32, torch.bfloat16),
    triton=(torch.float32, torch.bfloat16, torch.float16),
)


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
    if memory.dtype != q.dtype:
        raise ValueError(f"q is {q.dtype} and its memory {memory.dtype}; they must agree")
    chosen = choose(_room, q)
    if chosen == REFERENCE:
        return reference.cross_attention(q, memory, offsets, index, key_lengths)
    q, memory = q.contiguous(), dense_heads(memory)
    texts = (
        offsets.contiguous(),
        index.contiguous(),
        None if key_lengths is None else key_lengths.contiguous(),
    )
    if torch.is_grad_enabled() and (q.requires_grad or memory.requires_grad):
        out: Tensor = _CrossAttention.apply(chosen, q, memory, *texts)
        return out
    return _room.operator(chosen)(q, memory, *texts)[0]


def choose(room: Room, q: Tensor, obstacle: str = "", cuda: str = "") -> str:
    """The implementation to run in a room of attention to memory.

    Args:
        obstacle: what keeps the opaque ones from this call beside q's device, dtype and width.
        cuda: what keeps "cuda" from it, which not every room has.

    Raises:
        ValueError: where one was asked for by name that cannot run this call.
    """
    width = q.shape[-1]
    native = "" if width % 16 == 0 and 0 < width <= 128 else "not a multiple of 16 up to 128"
    obstacles = {
        "native": obstacle or (native and f"heads are {width} wide, {native}"),
        "triton": obstacle or widths.obstacle(width),
        "cuda": obstacle or cuda,
    }
    return room.choose(q, obstacles=obstacles)


def dense_heads(pairs: Tensor) -> Tensor:
    """`pairs` itself where a token's keys and values lie together, else a copy that is so."""
    _, _, _, heads, width = pairs.shape
    dense = pairs.stride()[2:] == (heads * width, width, 1)
    return pairs if dense else pairs.contiguous()


class _CrossAttention(torch.autograd.Function):
    """The gradient around an opaque forward; the weights are recomputed from the logsumexp."""

    @staticmethod
    def forward(
        ctx: Any,
        implementation: str,
        q: Tensor,
        memory: Tensor,
        offsets: Tensor,
        index: Tensor,
        key_lengths: Tensor | None,
    ) -> Tensor:
        texts = (offsets, index, key_lengths)
        out, logsumexp = _room.operator(implementation)(q, memory, *texts)
        ctx.save_for_backward(q, memory, out, logsumexp, *texts)
        ctx.implementation = implementation
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        backward = _room.operator(ctx.implementation, "cross_attention_backward")
        grad_q, grad_memory = backward(grads[0].contiguous(), *ctx.saved_tensors)
        return None, grad_q, grad_memory, None, None, None


def _fake(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


def _fake_backward(grad: Tensor, q: Tensor, memory: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), memory.new_empty(memory.shape)


register_fake("cross_attention", _fake)
register_fake("cross_attention_backward", _fake_backward)
register_triton("cross_attention", "cross_attention", "cross_attention_backward")
