"""ITC with soft targets in plain PyTorch, with all similarities stored."""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive(
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    alpha: float,
) -> Tensor:
    """[B, E] against [Q, E] -> [B] float32."""
    bank = bank.detach().float()
    with torch.no_grad():
        soft = (momentum.float() @ bank.T / temperature.float()).softmax(1)
        positives = (ids[:, None] == bank_ids).float()
        positives = positives / positives.sum(1, keepdim=True)
        targets = alpha * soft + (1 - alpha) * positives
    similarity = features.float() @ bank.T / temperature.float()
    return -(targets * similarity.log_softmax(1)).sum(1)
