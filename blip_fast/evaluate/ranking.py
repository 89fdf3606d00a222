"""Recall of retrieval, as BLIP and those before it report it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from blip_fast.tasks.nearest import Ranking


def recall(
    ranking: Ranking, relevant: Sequence[Collection[int]], ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """The share of queries with a right answer among their first k.

    An image of COCO has five right texts, of which any counts.

    Args:
        relevant: for each query the places that are right.

    Returns:
        k to a share from 0 to 1.

    Raises:
        ValueError: where there are no queries, or another number of answers.
    """
    if len(relevant) != len(ranking):
        raise ValueError(f"{len(ranking)} queries are ranked and {len(relevant)} have answers")
    if not len(ranking):
        raise ValueError("there are no queries; the recall of none is no number")
    rows = zip(ranking.places, relevant, strict=True)
    right = [torch.isin(places, torch.tensor(list(wanted))) for places, wanted in rows]
    hits = torch.stack(right)
    return {k: hits[:, :k].any(dim=1).double().mean().item() for k in ks}
