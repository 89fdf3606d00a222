"""The choice of the next token in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def penalise(
    scores: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    repetition_penalty: float,
    min_length: int,
    end_id: int,
) -> Tensor:
    """[B, V] -> [B, V]."""
    if repetition_penalty == 1 and min_length <= 0:
        return scores
    changed = scores.clone()
    if repetition_penalty != 1:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        # What does not count yet repeats the first token, which changes nothing.
        held = torch.where(place < lengths[:, None], tokens, tokens[:, :1])
        chosen = scores.gather(1, held)
        chosen = torch.where(chosen < 0, chosen * repetition_penalty, chosen / repetition_penalty)
        changed.scatter_(1, held, chosen)
    if min_length > 0:
        changed[:, end_id].masked_fill_(lengths < min_length, -torch.inf)
    return changed


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """[B, V] -> [B].

    Sums are fp64 and run in order of rank, so that every implementation draws the same token.
    """
    ranked, tokens = _ranked(logits, top_k)
    weights = ((ranked.double() - ranked[:, :1].double()) / temperature).exp()
    reached = weights.cumsum(1)
    before = F.pad(reached[:, :-1], (1, 0))
    kept = (before < top_p * reached[:, -1:]) & (weights > 0)
    last = (kept.sum(1, keepdim=True) - 1).clamp(min=0)
    # Draw by the inverse of the distribution function. A token of no probability adds nothing to
    # the sum, so it is never the first to pass the threshold.
    threshold = uniform[:, None].double() * reached.gather(1, last)
    place = (reached <= threshold).sum(1, keepdim=True)
    return tokens.gather(1, torch.minimum(place, last))[:, 0]


def _ranked(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` largest of each row, or all for 0, and their places; of equals, the first first.

    `topk` orders equals anyhow, so it is given numbers that hold the place too: the bits of a
    float, which order as an integer once those of negative ones are turned over, then the place
    from the end.
    """
    vocabulary = logits.shape[1]
    if top_k == 0 or top_k >= vocabulary or logits.dtype != torch.float32:
        ranked, tokens = logits.sort(dim=1, descending=True, stable=True)
        return (ranked[:, :top_k], tokens[:, :top_k]) if top_k else (ranked, tokens)
    bits = (logits + 0.0).view(torch.int32)  # + 0.0: both zeros are one value
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    place = torch.arange(vocabulary, device=logits.device)
    keys = (order * vocabulary + (vocabulary - 1 - place)).topk(top_k)[0]
    tokens = vocabulary - 1 - keys.remainder(vocabulary)
    return logits.gather(1, tokens), tokens


def beam_step(log_probs: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N * K, V] and [N, K] -> three of [N, keep]."""
    images, beams = scores.shape
    vocabulary = log_probs.shape[1]
    # What is not among the best of its beam is not among the best of all.
    most = min(keep, vocabulary)
    ranked, tokens = log_probs.view(images, beams, vocabulary).topk(most)
    best, place = (ranked + scores[:, :, None]).view(images, -1).topk(keep)
    return best, place // most, tokens.view(images, -1).gather(1, place)
