"""Recall of rankings, as BLIP's retrieval tables have it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from blip_fast.tasks.retrieve import Ranking

DEPTHS = (1, 5, 10)


def recall(
    ranking: Ranking, truth: Sequence[Collection[int]], depths: Sequence[int] = DEPTHS
) -> dict[int, float]:
    """R@k: the share of queries with a right candidate among their k best.

    Args:
        truth: for each query the places that are right; queries with none do not count.

    Returns:
        depth to share; the mean of several depths and both directions is BLIP's `r_mean`.

    Raises:
        ValueError: where there are not as many truths as queries, or none that counts.
    """
    if len(truth) != len(ranking.places):
        raise ValueError(f"there are {len(truth)} truths for {len(ranking.places)} queries")
    rows = ranking.places.tolist()
    counted = [(row, set(right)) for row, right in zip(rows, truth, strict=True) if right]
    if not counted:
        raise ValueError("no query has a right candidate; give at least one")
    return {
        k: sum(not right.isdisjoint(row[:k]) for row, right in counted) / len(counted)
        for k in depths
    }
