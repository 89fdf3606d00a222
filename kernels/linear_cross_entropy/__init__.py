"""Language-model head and label-smoothed cross-entropy, one loss a token.

Gradient convention: every gradient is assigned, none is accumulated here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blip_fast.kernels._ops import (
    REFERENCE,
    Room,
    register_everywhere,
    register_fake,
    register_triton,
)
from blip_fast.kernels.linear_cross_entropy import chunked, reference
from blip_fast.kernels.linear_cross_entropy.reference import IGNORE

__all__ = ["IGNORE", "linear_cross_entropy"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_room = Room("linear_cross_entropy", triton=_DTYPES, chunked=_DTYPES)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum_v y_v log softmax(hidden @ weight.T + bias)_v for each row.

    y is 1 - s at the target plus s / V everywhere, s the label smoothing (BLIP trains with 0.1).
    Without smoothing, a loss is minus the token's log-probability.

    Args:
        hidden: [T, K].
        weight: [V, K].
        bias: [V].
        targets: [T] int64 in 0..V-1, or -100 for a row that does not count.
        label_smoothing: in 0..1.

    Returns:
        [T] float32; 0 where the row does not count.

    Raises:
        ValueError: where shapes or dtypes do not fit.
        IndexError or RuntimeError: where a target is no token.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden must be [T, K] with T targets; they are {tuple(hidden.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if weight.shape[1] != hidden.shape[1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)} and bias "
            f"{tuple(bias.shape)}"
        )
    if weight.dtype != hidden.dtype or bias.dtype != hidden.dtype:
        raise ValueError(
            f"hidden is {hidden.dtype}, weight {weight.dtype} and bias {bias.dtype}; they must "
            "agree"
        )
    chosen = _room.choose(hidden)
    if chosen == REFERENCE:
        return reference.linear_cross_entropy(hidden, weight, bias, targets, label_smoothing)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, weight, bias)):
        return _LinearCrossEntropy.apply(chosen, hidden, weight, bias, targets, label_smoothing)
    losses: Tensor = _room.operator(chosen)(hidden, weight, bias, targets, label_smoothing)[0]
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient around an opaque forward; it keeps the logsumexp, not the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        implementation: str,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        forward = _room.operator(implementation)
        losses, logsumexp = forward(hidden, weight, bias, targets, label_smoothing)
        ctx.save_for_backward(hidden, weight, bias, targets, logsumexp)
        ctx.implementation, ctx.label_smoothing = implementation, label_smoothing
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = _room.operator(ctx.implementation, "linear_cross_entropy_backward")
        grads = backward(grad.contiguous(), *ctx.saved_tensors, ctx.label_smoothing)
        return None, *grads, None, None


def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    losses = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    return losses, torch.empty_like(losses)


def _fake_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    logsumexp: Tensor,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight), torch.empty_like(bias)


register_everywhere("linear_cross_entropy", "chunked", chunked.linear_cross_entropy)
register_everywhere(
    "linear_cross_entropy_backward", "chunked", chunked.linear_cross_entropy_backward
)
register_triton("linear_cross_entropy", "linear_cross_entropy", "linear_cross_entropy_backward")
register_fake("linear_cross_entropy", _fake)
register_fake("linear_cross_entropy_backward", _fake_backward)
