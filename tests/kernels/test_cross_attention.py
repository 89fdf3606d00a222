"""Cross-attention by index, against a loop over sequences in fp64."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from oracles import attend
from tolerance import assert_close_as_torch, wide
from torch import Tensor

from blip_fast import kernels


def oracle(
    q: Tensor, memory: Tensor, lengths: list[int], index: list[int], keys: list[int] | None
) -> Tensor:
    parts = []
    for rows, m in zip(q.split(lengths), index, strict=True):
        count = memory.shape[1] if keys is None else keys[m]
        k, v = memory[m, :count].unbind(1)
        parts.append(attend(rows, k, v, causal=False) if count else torch.zeros_like(rows))
    return torch.cat(parts)


CASES = [
    # text lengths, image of each text: all alike, unsorted, an image nobody reads, one of many
    ([4, 4, 4], [0, 1, 2], None),
    ([3, 1, 9, 2, 5], [2, 0, 2, 2, 0], None),
    ([1], [1], None),
    ([3, 1, 9], [2, 0, 1], [5, 1, 19]),
    ([3, 2], [0, 2], [0, 4, 19]),
]


@pytest.mark.parametrize(("lengths", "index", "keys"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_a_loop(
    lengths: list[int], index: list[int], keys: list[int] | None, dtype: torch.dtype
) -> None:
    q, memory = torch.randn(sum(lengths), 2, 64).to(dtype), torch.randn(3, 19, 2, 2, 64).to(dtype)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    key_lengths = None if keys is None else torch.tensor(keys)
    actual = kernels.cross_attention(q, memory, offsets, torch.tensor(index), key_lengths)
    high = wide(dtype)
    truth = oracle(q.to(high), memory.to(high), lengths, index, keys)
    same = oracle(q, memory, lengths, index, keys)
    assert_close_as_torch("cross", actual, same, truth)


def test_gradient_sums_into_each_image_once() -> None:
    q = torch.randn(6, 1, 64, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 5, 2, 1, 64, dtype=torch.float64, requires_grad=True)
    offsets, index = torch.tensor([0, 2, 3, 6], dtype=torch.int32), torch.tensor([1, 0, 1])
    weights = torch.randn(6, 1, 64, dtype=torch.float64)

    actual = kernels.cross_attention(q, memory, offsets, index)
    ours = torch.autograd.grad((actual * weights).sum(), (q, memory))
    expected = oracle(q, memory, [2, 1, 3], [1, 0, 1], None)
    theirs = torch.autograd.grad((expected * weights).sum(), (q, memory))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_shapes_are_checked() -> None:
    q, memory = torch.zeros(4, 2, 64), torch.zeros(3, 5, 2, 1, 64)
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="needs a memory of shape"):
        kernels.cross_attention(q, memory, offsets, torch.tensor([0]))
    with pytest.raises(ValueError, match="2 sequences need 3 offsets; there are 2"):
        kernels.cross_attention(q, torch.zeros(3, 5, 2, 2, 64), offsets, torch.tensor([0, 1]))
