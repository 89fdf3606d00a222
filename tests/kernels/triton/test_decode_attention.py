"""Decoding attention in Triton, against a loop over sequences in higher precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from decoding_cases import DTYPES, memory, past
from gate import Gate
from memories import attend_to_memories
from tolerance import assert_close_as_torch

from blip_fast import kernels
from blip_fast.kernels import _ops
from blip_fast.kernels.decode_attention import config


class TestPast(Gate):
    room = "decode_attention"
    implementations = ("triton",)
    cases = {
        **{f"unequal, {d}": partial(past, [3, 1, 40, 33], 40, d) for d in DTYPES},
        "no past": partial(past, [2, 0, 1], 4, torch.bfloat16),
        "no sequences": partial(past, [], 4, torch.bfloat16),
        **{f"heads of 88, {d}": partial(past, [5, 3], 5, d, 88) for d in DTYPES},
    }


class TestMemory(Gate):
    room = "decode_attention"
    implementations = ("triton",)
    cases = {
        **{f"any order, {d}": partial(memory, [3, 0, 0, 3, 1, 3], None, d) for d in DTYPES},
        "more than a tile of one": partial(memory, [2] * 19, None, torch.bfloat16),
        "several parts": partial(memory, [1, 0, 1], None, torch.bfloat16, (577, 64)),
        "parts without keys": partial(memory, [2, 0, 0, 2], [300, 1, 64, 0], torch.float32,
                                      (300, 64)),
        "a memory of no keys": partial(memory, [3, 1, 3], [70, 10, 3, 0], torch.bfloat16),
        "no keys in several parts": partial(memory, [3, 1], [0, 0, 0, 0], torch.bfloat16,
                                            (300, 16)),
        "one": partial(memory, [1], None, torch.bfloat16),
        "no sequences": partial(memory, [], None, torch.bfloat16),
        **{f"heads of 88, {d}": partial(memory, [1, 0, 1], None, d, (70, 88)) for d in DTYPES},
    }  # fmt: skip


def test_a_sequence_does_not_depend_on_its_neighbours() -> None:
    index = [n % 3 for n in range(20)]
    q, memory = torch.randn(20, 2, 64).bfloat16(), torch.randn(3, 300, 2, 2, 64).bfloat16()
    with kernels.use("triton"):
        together = kernels.decode_cross_attention(q, memory, torch.tensor(index))
        for n in (0, 7, 19):
            image = memory[index[n]][None]
            alone = kernels.decode_cross_attention(q[n][None], image, torch.zeros(1).long())
            assert torch.equal(alone[0], together[n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_beyond_a_length_is_not_read(dtype: torch.dtype) -> None:
    q, memory = torch.randn(4, 2, 64).to(dtype), torch.randn(3, 300, 2, 2, 64).to(dtype)
    cache, ancestors = torch.randn(4, 40, 2, 2, 64).to(dtype), torch.randint(4, (4, 40))
    past, read = torch.tensor([1, 33, 40, 2]), torch.zeros(4, 40, dtype=torch.bool)
    for row, length in zip(ancestors, past.tolist(), strict=True):
        read[row[:length], torch.arange(length)] = True
    index, lengths = torch.tensor([2, 1, 0, 0]), torch.tensor([5, 0, 290])
    results = []
    for beyond in (0.0, torch.nan):
        cache[~read] = beyond
        for m, length in enumerate(lengths.tolist()):
            memory[m, length:] = beyond
        with kernels.use("triton"):
            of_past = kernels.decode_attention(q, cache, ancestors, past)
            of_memory = kernels.decode_cross_attention(q, memory, index, lengths)
        results.append((of_past, of_memory))
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other) and other.isfinite().all()


@pytest.mark.skipif(not _ops.TRITON_INTERPRETED, reason="the interpreter alone counts loads")
@pytest.mark.parametrize("keys", [70, 577])
def test_a_memory_is_read_once_for_all_beams_of_its_image(keys: int) -> None:
    from interpreter import loads_of

    memory = torch.randn(3, keys, 2, 1, 64).bfloat16()
    for beams in (1, 3) if keys > 70 else (16,):
        index = torch.tensor([2, 0]).repeat_interleave(beams)
        q = torch.randn(2 * beams, 1, 64).bfloat16()
        with loads_of(memory) as counts, kernels.use("triton"):
            kernels.decode_cross_attention(q, memory, index)
        assert counts[[0, 2]].eq(1).all() and counts[1].eq(0).all()


def test_4700_keys_and_positions() -> None:
    q, pairs = torch.randn(2, 1, 64).bfloat16(), torch.randn(1, 4700, 2, 1, 64).bfloat16()
    same, truth = (
        attend_to_memories(q.to(d), pairs.to(d), [1, 1], [0, 0], None)
        for d in (torch.bfloat16, torch.float32)
    )
    of_one = torch.zeros(2, dtype=torch.int64)
    with kernels.use("triton"):
        of_memory = kernels.decode_cross_attention(q, pairs, of_one)
        assert_close_as_torch("memory", of_memory, same, truth)
        ancestors, length = torch.zeros(1, 4700, dtype=torch.int64), torch.tensor([4700])
        of_past = kernels.decode_attention(q[:1], pairs, ancestors, length)
        assert_close_as_torch("past", of_past, same[:1], truth[:1])


def test_more_sequences_than_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CHUNK", 16)
    q, memory = torch.randn(75, 1, 16), torch.randn(2, 5, 2, 1, 16)
    index = torch.arange(75) % 2
    with kernels.use("triton"):
        out = kernels.decode_cross_attention(q, memory, index)
    expected = attend_to_memories(q, memory, [1] * 75, index.tolist(), None)
    torch.testing.assert_close(out, expected)
