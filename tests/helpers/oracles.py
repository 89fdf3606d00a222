"""Attention written out, one head and one sequence at a time: what the rooms are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """[S, H, D] each -> [S, H, D], one head at a time."""
    heads = []
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h].T / q.shape[2] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(1) @ v[:, h])
    return torch.stack(heads, dim=1)
