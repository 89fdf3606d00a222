"""The nearest features to some others, exactly: what the first stage of a search lets through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Similarities held at once: 64 MiB of float32, whatever the size of a collection.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Ranking:
    """For each of Q queries the best of a collection, best first.

    Attributes:
        places: [Q, K] int64, in the collection; -1 behind the last, where there are fewer than K.
        scores: [Q, K] float32; NaN there.
    """

    places: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.places)


def nearest(queries: Tensor, collection: Tensor, k: int) -> Ranking:
    """By cosine, for normalised features; a row of NaN is near nothing.

    Args:
        queries: [Q, E] float32.
        collection: [N, E] float32.
        k: how many; fewer where the collection is smaller.
    """
    k = min(k, len(collection))
    places = torch.full((len(queries), k), -1)
    scores = torch.full((len(queries), k), torch.nan)
    if k == 0 or not len(queries):
        return Ranking(places, scores)
    step = max(1, _AT_ONCE // len(collection))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        cosines = (queries[part] @ collection.T).nan_to_num_(nan=-torch.inf)
        best = cosines.topk(k)
        found = best.values > -torch.inf
        places[part] = best.indices.where(found, -1)
        scores[part] = best.values.where(found, torch.nan)
    return Ranking(places, scores)
