"""Numbers that judge scores and answers; plain functions of lists and tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def auc(positives: Tensor, negatives: Tensor) -> float:
    """Probability that a positive scores above a negative; equal scores count one half.

    Args:
        positives, negatives: [P] and [N] scores.

    Raises:
        ValueError: where there is none of one kind, or a score is not a number.
    """
    if not len(positives) or not len(negatives):
        raise ValueError(
            f"there are {len(positives)} positives and {len(negatives)} negatives; AUC needs both"
        )
    scores = torch.cat([positives, negatives]).double()
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are not a number")
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    # Equal scores share the mean of the ranks that they take up.
    rank = (counts.cumsum(0) - (counts.double() - 1) / 2)[place]
    p, n = len(positives), len(negatives)
    return float((rank[:p].sum() - p * (p + 1) / 2) / (p * n))


def recall_at_1(scores: Tensor, right: Tensor) -> float:
    """Share of rows whose best column is right; of equally good columns the first counts.

    Args:
        scores: [N, M].
        right: [N, M] bool.
    """
    best = scores.argmax(dim=1, keepdim=True)
    return right.gather(1, best).float().mean().item()


def accuracy(given: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of answers that are the wanted one, letter by letter."""
    return sum(g == w for g, w in zip(given, wanted, strict=True)) / len(wanted)


def majority(wanted: Sequence[str]) -> float:
    """Share of the commonest answer: what saying it always would be worth."""
    return Counter(wanted).most_common(1)[0][1] / len(wanted)
