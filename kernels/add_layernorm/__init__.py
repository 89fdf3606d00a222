"""Residual addition and LayerNorm in one pass over the row.

Statistics are fp32 whatever the input. Gradient convention: every gradient is assigned, none is
accumulated here; the weight's and the bias's are summed over rows in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, TRITON, Room, register_fake, register_triton
from blip_fast.kernels.add_layernorm import config, reference

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_room = Room("add_layernorm", native=_DTYPES, triton=_DTYPES)


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
    total, out = _run(x, residual, weight, bias, eps, keep_sum=True)
    return total, out


def layernorm_of_sum(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """LayerNorm of `x + residual`, the sum not kept: what a post-norm layer needs.

    Arguments and errors as for `add_layernorm`.
    """
    return _run(x, residual, weight, bias, eps, keep_sum=False)[-1]


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of `x` over its last axis. Arguments and errors as for `add_layernorm`."""
    return _run(x, None, weight, bias, eps, keep_sum=False)[-1]


def _run(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, keep_sum: bool
) -> tuple[Tensor, ...]:
    """The sum, unless a gradient is wanted and the sum not kept, and its LayerNorm."""
    _check(x, residual, weight, bias)
    widest = config.MAX_WIDTH
    too_wide = f"a program holds rows of {widest} at most" if x.shape[-1] > widest else ""
    chosen = _room.choose(x, obstacles={TRITON: too_wide})
    if chosen == REFERENCE:
        return reference.add_layernorm(x, residual, weight, bias, eps)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    tensors = [t for t in (x, residual, weight, bias) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        normed: tuple[Tensor, ...]
        normed = _AddLayerNorm.apply(chosen, x, residual, weight, bias, eps, keep_sum)
        return normed
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
        keep_sum: bool,
    ) -> tuple[Tensor, ...]:
        added = residual is not None
        total, out = _room.operator(implementation)(x, residual, weight, bias, eps, added)
        ctx.save_for_backward(total if added else x, weight)
        ctx.implementation, ctx.eps, ctx.added = implementation, eps, added
        # A sum that nobody was given gets no gradient, which would be zeros to write and read.
        return (total, out) if keep_sum else (out,)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_out, grad_sum = grads[-1], grads[0] if len(grads) == 2 else None
        total, weight = ctx.saved_tensors
        backward = reference.add_layernorm_backward
        if ctx.implementation == TRITON:
            backward = _room.operator(TRITON, "add_layernorm_backward")
            grad_sum = None if grad_sum is None else grad_sum.contiguous()
            grad_out = grad_out.contiguous()
        grad_x, *of_affine = backward(grad_sum, grad_out, total, weight, ctx.eps)
        return None, grad_x, grad_x if ctx.added else None, *of_affine, None, None


def _fake(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    kept = keep_sum and residual is not None
    return (torch.empty_like(x) if kept else x.new_empty(0)), torch.empty_like(x)


def _fake_backward(
    grad_sum: Tensor | None, grad_out: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(total), torch.empty_like(weight), torch.empty_like(weight)


register_triton("add_layernorm", "add_layernorm", "add_layernorm_backward")
register_fake("add_layernorm", _fake)
register_fake("add_layernorm_backward", _fake_backward)
