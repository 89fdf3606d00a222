"""Residual addition and LayerNorm in one pass over the row.

Statistics are fp32 whatever the input. Gradient convention: every gradient is assigned, none is
accumulated here; the weight's and the bias's are summed over rows in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, Room, register_fake
from blip_fast.kernels.add_layernorm import reference

_room = Room("add_layernorm", native=(torch.float32, torch.bfloat16, torch.float16))


def add_layernorm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add, and normalise the sum: what a pre-norm block needs.

    Args:
        x: [..., N], floating.
        residual: as `x`, in shape and dtype.
        weight, bias: [N], in x's dtype or float32.
        eps: added to the variance; 1e-6 in BLIP's vision, 1e-12 in its text layers.

    Returns:
        `x + residual` and its LayerNorm, both as `x`.

    Raises:
        ValueError: where shapes or dtypes do not fit.
    """
    return _run(x, residual, weight, bias, eps, keep_sum=True)


def layernorm_of_sum(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """LayerNorm of `x + residual`, the sum not kept: what a post-norm layer needs.

    Arguments and errors as for `add_layernorm`.
    """
    return _run(x, residual, weight, bias, eps, keep_sum=False)[1]


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of `x` over its last axis. Arguments and errors as for `add_layernorm`."""
    return _run(x, None, weight, bias, eps, keep_sum=False)[1]


def _run(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    _check(x, residual, weight, bias)
    chosen = _room.choose(x)
    if chosen == REFERENCE:
        return reference.add_layernorm(x, residual, weight, bias, eps)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    tensors = [t for t in (x, residual, weight, bias) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        total, out = _AddLayerNorm.apply(chosen, x, residual, weight, bias, eps)
        return total, out
    total, out = _room.operator(chosen)(x, residual, weight, bias, eps, keep_sum)
    return total, out


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    width = (x.shape[-1],) if x.ndim else ()
    if weight.shape != width or bias.shape != width:
        raise ValueError(
            f"x {tuple(x.shape)} needs weight and bias of shape {width}; they are "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype}, its residual {tuple(residual.shape)} "
            f"{residual.dtype}; they must agree"
        )


class _AddLayerNorm(torch.autograd.Function):
    """The gradient around an opaque forward; it keeps the sum and recomputes the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        implementation: str,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        keep_sum = residual is not None
        total, out = _room.operator(implementation)(x, residual, weight, bias, eps, keep_sum)
        ctx.save_for_backward(total if keep_sum else x, weight)
        ctx.eps, ctx.keep_sum = eps, keep_sum
        return total, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_sum, grad_out = grads
        total, weight = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = reference.add_layernorm_backward(
            grad_sum if ctx.keep_sum else None, grad_out, total, weight, ctx.eps
        )
        grad_residual = grad_x if ctx.keep_sum else None
        return None, grad_x, grad_residual, grad_weight, grad_bias, None


def _fake(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    kept = keep_sum and residual is not None
    return (torch.empty_like(x) if kept else x.new_empty(0)), torch.empty_like(x)


register_fake("add_layernorm", _fake)
