"""Residual addition and LayerNorm in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def add_layernorm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum in x's dtype, and its LayerNorm computed in (at least) fp32."""
    total = x if residual is None else x + residual
    wide = _wide(x)
    out = F.layer_norm(total.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return total, out.to(x.dtype)


def add_layernorm_backward(
    grad_sum: Tensor | None, grad_out: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (and of the residual: they are equal), weight and bias.

    With h the normalised row and g = grad_out * weight:
    grad_x = (g - mean(g) - h * mean(g * h)) / std + grad_sum.
    """
    wide = _wide(total)
    rows, grad = total.to(wide), grad_out.to(wide)
    centred = rows - rows.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normed = centred * rstd
    g = grad * weight.to(wide)
    grad_x = rstd * (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True))
    if grad_sum is not None:
        grad_x = grad_x + grad_sum.to(wide)
    grad_weight = (grad * normed).flatten(0, -2).sum(0)
    grad_bias = grad.flatten(0, -2).sum(0)
    return grad_x.to(total.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
