"""Attention and sampling written out, one after the other: what the rooms are held against."""

from __future__ import annotations

import math

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


def draw(logits: list[float], uniform: float, temperature: float, top_k: int, top_p: float) -> int:
    """The token that sampling chooses, by the rule in plain Python."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    ranked = ranked[:top_k] if top_k else ranked
    if logits[ranked[0]] == -math.inf:
        return ranked[0]
    weights = [math.exp((logits[t] - logits[ranked[0]]) / temperature) for t in ranked]
    total, kept, reached = sum(weights), 0, 0.0
    while kept < len(ranked) and weights[kept] > 0 and (reached < top_p * total or top_p == 1):
        reached += weights[kept]
        kept += 1
    threshold, reached = uniform * reached, 0.0
    for token, weight in zip(ranked[:kept], weights, strict=False):
        reached += weight
        if reached > threshold:
            return token
    return ranked[kept - 1]
