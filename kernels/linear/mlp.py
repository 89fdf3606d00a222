"""Two linears with a GELU between, which in training keep what comes before the GELU alone.

Kept apart, the GELU keeps its input and the second linear its output: of all that a transformer's
layer keeps for the backward pass, a quarter is that output. Making it again costs one pass over
memory, a hundredth of the products around it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from blip_fast.kernels.linear import linear


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """GELU(x @ weight1.T + bias1) @ weight2.T + bias2, the GELU exact.

    Args:
        x: [..., K].
        weight1, bias1: [M, K] and [M], in x's dtype.
        weight2, bias2: [N, M] and [N], likewise.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: where shapes do not fit; see `linear`.
    """
    tensors = (x, weight1, bias1, weight2, bias2)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        out: Tensor = _Mlp.apply(*tensors)
        return out
    return linear(linear(x, weight1, bias1, "gelu"), weight2, bias2)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        before = linear(x, weight1, bias1)
        ctx.save_for_backward(x, weight1, weight2, before)
        return linear(F.gelu(before), weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, weight2, before = ctx.saved_tensors
        needs_x, needs_weight1, needs_bias1, needs_weight2, needs_bias2 = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        between = before.reshape(-1, before.shape[-1])
        grad_weight2 = rows.T @ F.gelu(between) if needs_weight2 else None
        grad_bias2 = rows.sum(0) if needs_bias2 else None
        inner = torch.ops.aten.gelu_backward(rows @ weight2, between)
        grad_weight1 = inner.T @ x.reshape(-1, x.shape[-1]) if needs_weight1 else None
        grad_bias1 = inner.sum(0) if needs_bias1 else None
        grad_x = (inner @ weight1).view_as(x) if needs_x else None
        return grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2
