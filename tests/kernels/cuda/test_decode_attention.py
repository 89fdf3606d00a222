"""Decoding attention in CUDA C++, against a loop over sequences in higher precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from decoding_cases import DTYPES, memory, past
from gate import Gate
from memories import attend_to_memories
from torch import Tensor

from blip_fast import kernels


class TestMemory(Gate):
    room = "decode_attention"
    implementations = ("cuda",)
    few = ("any order, torch.bfloat16", "unequal memories")
    cases = {
        **{f"any order, {d}": partial(memory, [3, 0, 0, 3, 1, 3], None, d) for d in DTYPES},
        **{f"heads of 88, {d}": partial(memory, [1, 0, 1], None, d, (70, 88)) for d in DTYPES},
        **{f"a cluster, {d}": partial(memory, [1, 0, 1], None, d, (577, 64)) for d in DTYPES},
        "one key": partial(memory, [2, 2], None, torch.bfloat16, (1, 64)),
        "more than go at once": partial(memory, [2] * 11, None, torch.bfloat16, (163, 64)),
        "unequal memories": partial(memory, [2, 0, 0, 2], [300, 1, 64, 0], torch.float32,
                                    (300, 64)),
        "a memory of no keys": partial(memory, [3, 1, 3], [200, 161, 3, 0], torch.bfloat16,
                                       (200, 64)),
        "no keys at all": partial(memory, [3, 1], None, torch.float16, (0, 64)),
        "no sequences": partial(memory, [], None, torch.bfloat16),
    }  # fmt: skip


class TestPast(Gate):
    room = "decode_attention"
    implementations = ("cuda",)
    cases = {
        **{f"unequal, {d}": partial(past, [3, 1, 40, 33], 40, d) for d in DTYPES},
        **{f"heads of 88, {d}": partial(past, [5, 3], 5, d, 88) for d in DTYPES},
        "more than a ring": partial(past, [133, 65, 64], 133, torch.bfloat16),
        "no past": partial(past, [2, 0, 1], 4, torch.bfloat16),
        "no sequences": partial(past, [], 4, torch.bfloat16),
    }


@pytest.fixture(autouse=True)
def _forced() -> Iterator[None]:
    with kernels.use("cuda"):
        yield


def _compared(index: list[int], keys: int, dtype: torch.dtype = torch.float32) -> Tensor:
    q, memory = torch.randn(len(index), 1, 64), torch.randn(2, keys, 2, 1, 64)
    q, memory = q.to(dtype), memory.to(dtype)
    out = kernels.decode_cross_attention(q, memory, torch.tensor(index))
    expected = attend_to_memories(q, memory, [1] * len(index), index, None)
    torch.testing.assert_close(out, expected)
    return out


def test_a_sequence_does_not_depend_on_its_neighbours_nor_on_padding() -> None:
    index = [n % 3 for n in range(14)]
    q, memory = torch.randn(14, 2, 64).bfloat16(), torch.randn(3, 300, 2, 2, 64).bfloat16()
    together = kernels.decode_cross_attention(q, memory, torch.tensor(index))
    padded = torch.cat((memory, torch.full((3, 700, 2, 2, 64), torch.nan).bfloat16()), 1)
    for n in (0, 7, 13):
        image = memory[index[n]][None]
        alone = kernels.decode_cross_attention(q[n][None], image, torch.zeros(1).long())
        assert torch.equal(alone[0], together[n])
        image, lengths = padded[index[n]][None], torch.tensor([300])
        alone = kernels.decode_cross_attention(q[n][None], image, torch.zeros(1).long(), lengths)
        assert torch.equal(alone[0], together[n])


def test_more_sequences_than_a_warp_looks_at_at_once() -> None:
    _compared([int(n > 97) for n in range(100)], 5)


def test_more_keys_than_a_cluster_has_in_shared_memory() -> None:
    _compared([1] * 5, 1400)


def test_infinite_and_missing_numbers_stay_where_they_are() -> None:
    q, memory = torch.randn(2, 1, 64), torch.randn(2, 40, 2, 1, 64)
    memory[0, 33, 1, 0, 5] = torch.nan
    memory[1, 7, 0, 0, :] = torch.inf * q[1, 0].sign()
    out = kernels.decode_cross_attention(q, memory, torch.tensor([0, 1]))
    assert out[0].isnan().sum() == 1 and out[0, 0, 5].isnan()
    assert out[1].isnan().all()


@pytest.mark.parametrize("width", [64, 88])
def test_a_head_does_not_see_its_neighbours(width: int) -> None:
    q, memory = torch.randn(2, 3, width), torch.randn(1, 37, 2, 3, width)
    index = torch.zeros(2).long()
    expected = kernels.decode_cross_attention(q, memory, index)
    q[:, [0, 2]], memory[:, :, :, [0, 2]] = torch.nan, torch.nan
    out = kernels.decode_cross_attention(q, memory, index)
    assert torch.equal(out[:, 1], expected[:, 1])
    assert out[:, [0, 2]].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to capture a graph on")
def test_a_graph_captures_the_launch_and_not_the_index() -> None:
    q, memory = torch.randn(6, 2, 64).bfloat16(), torch.randn(3, 577, 2, 2, 64).bfloat16()
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    kernels.decode_cross_attention(q, memory, index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.decode_cross_attention(q, memory, index)
    for other in ([0, 0, 1, 1, 2, 2], [2, 2, 2, 2, 2, 2], [1, 0, 2, 0, 1, 0]):
        index.copy_(torch.tensor(other))
        graph.replay()
        assert torch.equal(out, kernels.decode_cross_attention(q, memory, index))


def test_other_widths_are_refused_by_name() -> None:
    q, pairs = torch.zeros(1, 1, 48), torch.zeros(1, 2, 2, 1, 48)
    one, table = torch.zeros(1).long(), torch.zeros(1, 2).long()
    with pytest.raises(ValueError, match="48 wide, and it is compiled for 64 and 88; use Triton"):
        kernels.decode_cross_attention(q, pairs, one)
    with pytest.raises(ValueError, match="48 wide"):
        kernels.decode_attention(q, pairs, table, one)
    with pytest.raises(RuntimeError, match="heads are 48 wide"):
        torch.ops.blip_fast.decode_cross_attention.cuda(q, pairs, one, None)


def test_the_operator_checks_its_tensors() -> None:
    operator = torch.ops.blip_fast.decode_cross_attention.cuda
    q, memory, index = torch.zeros(2, 1, 64), torch.zeros(3, 2, 2, 1, 64), torch.zeros(2).long()
    with pytest.raises(RuntimeError, match="memory is Half, expected Float"):
        operator(q, memory.half(), index, None)
    with pytest.raises(RuntimeError, match="index has 1 dimensions and 1 elements"):
        operator(q, memory, index[:1], None)
    with pytest.raises(RuntimeError, match="key_lengths has .* expected one dimension of 3"):
        operator(q, memory, index, index)
    with pytest.raises(RuntimeError, match="index is Int, expected Long"):
        operator(q, memory, index.int(), None)
    with pytest.raises(RuntimeError, match="q is Double, expected float32"):
        operator(q.double(), memory.double(), index, None)
    past, cache = torch.ops.blip_fast.decode_attention.cuda, torch.zeros(3, 5, 2, 1, 64)
    with pytest.raises(RuntimeError, match=r"ancestors must be \[2, 5\]"):
        past(q, cache, torch.zeros(2, 4).long(), index)
    with pytest.raises(RuntimeError, match="the last three axes of cache are not contiguous"):
        past(q, cache.transpose(1, 2).contiguous().transpose(1, 2), torch.zeros(2, 5).long(), index)
