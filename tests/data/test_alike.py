from __future__ import annotations

import numpy as np
import pytest

from blip_fast.data.alike import NEAR, near, same


def flipped(codes: np.ndarray, bits: int, random: np.random.Generator) -> np.ndarray:
    """Each code with so many of its bits turned over, wherever they are."""
    codes = codes.copy()
    for i in range(len(codes)):
        for bit in random.choice(64, bits, replace=False):
            codes[i] ^= np.uint64(1) << np.uint64(bit)
    return codes


def by_all_pairs(codes: np.ndarray, most: int) -> list[tuple[int, ...]]:
    close = np.bitwise_count(codes[:, None] ^ codes[None]) <= most
    reach = close
    while not np.array_equal(reach, wider := reach @ close):
        reach = wider
    groups = {tuple(np.flatnonzero(row).tolist()) for row in reach if row.sum() > 1}
    return sorted(groups)


@pytest.mark.parametrize("most", [0, 1, 3, NEAR])
def test_every_near_pair_is_found(most: int) -> None:
    """Whatever the bits are: groups are those of comparing all with all."""
    random = np.random.default_rng(most)
    base = random.integers(0, 2**64 - 1, 60, dtype=np.uint64)
    codes = np.concatenate([flipped(base, bits, random) for bits in range(NEAR + 3)])
    assert [tuple(group.tolist()) for group in near(codes, most)] == by_all_pairs(codes, most)


def test_the_largest_distance_and_one_more() -> None:
    for start in range(0, 64):
        bits = [np.uint64(1) << np.uint64((start + 9 * i) % 64) for i in range(NEAR + 1)]
        one, other = np.uint64(0), np.bitwise_or.reduce(bits[:NEAR])
        assert len(near(np.array([one, other]))) == 1, start
        assert near(np.array([one, np.bitwise_or.reduce(bits)])) == []


def test_many_equal_codes_are_one_group() -> None:
    """As a source of one picture a thousand times: no thousand times a thousand pairs."""
    (group,) = near(np.full(100_000, 7, np.uint64))
    assert len(group) == 100_000


def test_same_keeps_places_in_order() -> None:
    groups = same(np.array([b"b", b"a", b"c", b"b", b"a"]))
    assert [group.tolist() for group in groups] == [[0, 3], [1, 4]]
    assert same(np.array([1, 2, 3])) == [] and near(np.array([], np.uint64)) == []


def test_more_bits_than_can_be_found_are_refused() -> None:
    with pytest.raises(ValueError, match="7 bits may differ; pairs are found up to 6"):
        near(np.zeros(2, np.uint64), 7)
