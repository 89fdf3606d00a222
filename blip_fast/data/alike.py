"""Which of many pictures are the same or nearly the same, by short codes of each.

Two 64-bit codes that differ in at most 6 bits agree in at least three of nine parts. So codes are
sorted by each of the 84 choices of three parts, about 21 bits, and compared with those that share
them: every near pair is found, without comparing all with all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

NEAR = 6  # bits
_PARTS, _AGREE = 9, 3  # NEAR + _AGREE parts: so many differing bits leave so many parts alike
_BITS = 7  # of a part; the last has one more


def same(codes: np.ndarray) -> list[np.ndarray]:
    """Groups of places with equal codes, two at least in each, in order of their first places.

    Args:
        codes: [N], of any type that can be sorted.
    """
    _, group = np.unique(codes, return_inverse=True)
    return _groups(group)


def near(codes: np.ndarray, most: int = NEAR) -> list[np.ndarray]:
    """Groups of places whose codes differ in few bits, each from some other of its group.

    Args:
        codes: uint64 [N].
        most: bits that may differ, at most 6.

    Raises:
        ValueError: where `most` is more than three equal parts can vouch for.
    """
    if not 0 <= most <= NEAR:
        raise ValueError(f"{most} bits may differ; pairs are found up to {NEAR}")
    distinct, place = np.unique(codes, return_inverse=True)
    parent = np.arange(len(distinct))
    for left, right in _pairs(distinct):
        close = np.bitwise_count(distinct[left] ^ distinct[right]) <= most
        _join(parent, left[close], right[close])
    return _groups(_roots(parent)[place])


def _pairs(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of pairs that share three parts, some pairs more than once, in many small batches."""
    widths = [_BITS] * (_PARTS - 1) + [64 - _BITS * (_PARTS - 1)]
    parts = [
        (codes >> np.uint64(_BITS * i) & np.uint64(2**width - 1)).astype(np.uint32)
        for i, width in enumerate(widths)
    ]
    for chosen in combinations(range(_PARTS), _AGREE):
        key = np.zeros(len(codes), np.uint32)
        for i in chosen:
            key = key << np.uint32(widths[i]) | parts[i]
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        left, step = np.arange(len(codes)), 1
        while len(left := left[left + step < len(codes)]):
            left = left[ordered[left] == ordered[left + step]]
            yield order[left], order[left + step]
            step += 1


def _join(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        low, high = sorted((_root(parent, a), _root(parent, b)))
        parent[high] = low


def _root(parent: np.ndarray, place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = int(parent[place])
    return place


def _roots(parent: np.ndarray) -> np.ndarray:
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return parent


def _groups(names: np.ndarray) -> list[np.ndarray]:
    """Places of equal names, where there are two or more."""
    order = np.argsort(names, kind="stable")
    starts = np.flatnonzero(np.diff(names[order], prepend=-1))
    counts = np.diff(starts, append=len(names))
    several = counts > 1
    pairs = zip(starts[several].tolist(), counts[several].tolist(), strict=True)
    groups = [order[start : start + count] for start, count in pairs]
    return sorted(groups, key=lambda group: int(group[0]))
