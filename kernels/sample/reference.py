"""The choice of the next token in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def penalise(
    scores: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    repetition_penalty: float,
    min_length: int,
    end_id: int,
) -> Tensor:
    """[B, V] -> [B, V]."""
    if repetition_penalty != 1:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        # What does not count yet repeats the first token, which changes nothing.
        held = torch.where(place < lengths[:, None], tokens, tokens[:, :1])
        chosen = scores.gather(1, held)
        chosen = torch.where(chosen < 0, chosen * repetition_penalty, chosen / repetition_penalty)
        scores = scores.scatter(1, held, chosen)
    if min_length > 0:
        ends = torch.arange(scores.shape[1], device=scores.device) == end_id
        too_short = (lengths < min_length)[:, None]
        scores = scores.masked_fill(ends & too_short, -torch.inf)
    return scores


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """[B, V] -> [B]."""
    ranked, tokens = (logits / temperature).sort(dim=1, descending=True, stable=True)
    if 0 < top_k < ranked.shape[1]:
        ranked, tokens = ranked[:, :top_k], tokens[:, :top_k]
    probabilities = ranked.softmax(1)
    before = probabilities.cumsum(1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    # Draw by the inverse of the distribution function. A token of no probability adds nothing to
    # the sum, so it is never the first to pass the threshold.
    reached = probabilities.cumsum(1)
    place = (reached <= uniform[:, None] * reached[:, -1:]).sum(1, keepdim=True)
    return tokens.gather(1, place.clamp(max=tokens.shape[1] - 1))[:, 0]


def beam_step(log_probs: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N * K, V] and [N, K] -> three of [N, keep]."""
    images, beams = scores.shape
    vocabulary = log_probs.shape[1]
    total = log_probs.view(images, beams, vocabulary) + scores[:, :, None]
    best, place = total.view(images, -1).topk(keep)
    return best, place // vocabulary, place % vocabulary
