"""Peers of the rooms other than attention, for GPUs: compiled references, Liger, NVIDIA's Apex."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6
Normalise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def layernorm_peers() -> dict[str, Callable[[], Normalise]]:
    """LayerNorm of x + residual, of rows [N, W], by name."""

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x + residual, weight.shape, weight, bias, EPS)

    def apex() -> Normalise:
        # NVIDIA's; the package of this name on PyPI is another, and lacks the module.
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine

        def normalise(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return fused_layer_norm_affine(x + residual, weight, bias, weight.shape, EPS)

        return normalise

    def liger() -> Normalise:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        def normalise(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return LigerLayerNormFunction.apply(x + residual, weight, bias, EPS)

        return normalise

    return {
        "torch": lambda: plain,
        "torch.compile": lambda: torch.compile(plain),
        "Apex": apex,
        "Liger": liger,
    }


def cross_entropy_peers(targets: Tensor, smoothing: float) -> dict[str, Callable[[], Loss]]:
    """The mean loss of hidden states [T, W] under a head [V, W] with bias [V], by name."""

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = F.linear(hidden, weight, bias).float()
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def liger() -> Loss:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(label_smoothing=smoothing)
        return lambda hidden, weight, bias: fused(weight, hidden, targets, bias)

    return {
        "torch, logits stored": lambda: plain,
        "torch.compile, logits stored": lambda: torch.compile(plain),
        "Liger": liger,
    }


def contrastive_peers(
    momentum: Tensor, bank: Tensor, temperature: Tensor, alpha: float
) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """ITC's loss of features [B, E] whose positives are the bank's first B entries, by name."""

    def plain(features: Tensor) -> Tensor:
        soft = F.softmax((momentum @ bank.T).float() / temperature, dim=1)
        one_hot = torch.eye(*soft.shape, device=soft.device)
        logs = F.log_softmax((features @ bank.T).float() / temperature, dim=1)
        return -(logs * (alpha * soft + (1 - alpha) * one_hot)).sum(1)

    return {
        "torch, similarities stored": lambda: plain,
        "torch.compile, similarities stored": lambda: torch.compile(plain),
    }
