"""Self-attention over images (dense) or texts (packed), causal or not.

Softmax and sums are fp32 whatever the input. Gradient convention: the gradient of qkv is assigned,
all three parts of it by one operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, Room, register_fake, register_triton
from blip_fast.kernels.attention import config, reference

_room = Room(
    "attention",
    native=(torch.float32, torch.bfloat16),
    triton=(torch.float32, torch.bfloat16, torch.float16),
)


def attention(
    qkv: Tensor,
    offsets: Tensor | None = None,
    max_length: int | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V within each sequence.

    Reads the fused projection as the matrix product leaves it, so that nothing is transposed.

    Args:
        qkv: dense [N, S, 3, H, D], all sequences of S tokens; or packed [T, 3, H, D], the
            sequences one after the other.
        offsets: packed only, [N + 1] int32: sequence n is rows offsets[n] to offsets[n + 1].
        max_length: packed only: the longest sequence, known on the host, so that no kernel has
            to ask the device.
        causal: a token sees itself and what stands before it in its sequence:

                1 0 0
                1 1 0
                1 1 1

    Returns:
        [N, S, H, D] or [T, H, D], in qkv's dtype.

    Raises:
        ValueError: where shapes do not fit, or one of `offsets` and `max_length` is missing.
    """
    if (offsets is None) != (max_length is None):
        raise ValueError("packed attention needs both offsets and max_length; one is missing")
    expected = 5 if offsets is None else 4
    if qkv.ndim != expected or qkv.shape[-3] != 3:
        wanted = "[N, S, 3, H, D]" if offsets is None else "[T, 3, H, D]"
        raise ValueError(f"qkv must be {wanted}; the shape is {tuple(qkv.shape)}")
    if offsets is not None and (offsets.dtype != torch.int32 or offsets.device != qkv.device):
        raise ValueError(
            f"offsets are {offsets.dtype} on {offsets.device}; they must be torch.int32 on qkv's "
            f"device, {qkv.device}"
        )
    chosen = _room.choose(qkv, obstacles={"triton": config.obstacle(qkv.shape[-1])})
    if chosen == REFERENCE:
        if offsets is None or max_length is None:
            return reference.dense_attention(qkv, causal)
        return reference.packed_attention(qkv, offsets, max_length, causal)
    qkv = qkv.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    if torch.is_grad_enabled() and qkv.requires_grad:
        return _Attention.apply(chosen, qkv, offsets, max_length or 0, causal)
    return _room.operator(chosen)(qkv, offsets, max_length or 0, causal)[0]


class _Attention(torch.autograd.Function):
    """The gradient around an opaque forward; weights are made again from the log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any,
        implementation: str,
        qkv: Tensor,
        offsets: Tensor | None,
        max_length: int,
        causal: bool,
    ) -> Tensor:
        out, logsumexp = _room.operator(implementation)(qkv, offsets, max_length, causal)
        ctx.save_for_backward(qkv, out, logsumexp, offsets)
        ctx.implementation, ctx.max_length, ctx.causal = implementation, max_length, causal
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, logsumexp, offsets = ctx.saved_tensors
        operator = _room.operator(ctx.implementation, "attention_backward")
        grad_qkv = operator(
            grads[0].contiguous(), qkv, out, logsumexp, offsets, ctx.max_length, ctx.causal
        )
        return None, grad_qkv, None, None, None


def _fake(
    qkv: Tensor, offsets: Tensor | None, max_length: int, causal: bool
) -> tuple[Tensor, Tensor]:
    shape = [*qkv.shape[:-3], *qkv.shape[-2:]]
    return qkv.new_empty(shape), qkv.new_empty(shape[:-1], dtype=torch.float32)


def _fake_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    offsets: Tensor | None,
    max_length: int,
    causal: bool,
) -> Tensor:
    return torch.empty_like(qkv)


register_fake("attention", _fake)
register_fake("attention_backward", _fake_backward)
register_triton("attention", "attention", "attention_backward")
