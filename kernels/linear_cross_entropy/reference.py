"""Cross-entropy of a linear head in plain PyTorch, with all its logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float
) -> Tensor:
    """[T, K] -> [T] float32."""
    logits = F.linear(hidden, weight, bias).to(torch.float32)
    return F.cross_entropy(
        logits, targets, ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing
    )
