"""One query a sequence, against a loop that follows the ancestors."""

from __future__ import annotations

import pytest
import torch
from oracles import attend
from tolerance import assert_close_as_torch, wide

from blip_fast import kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_past_is_found_through_ancestors(dtype: torch.dtype) -> None:
    q, cache = torch.randn(4, 2, 64).to(dtype), torch.randn(4, 6, 2, 2, 64).to(dtype)
    lengths = torch.tensor([1, 6, 3, 4])
    ancestors = torch.randint(0, 4, (4, 6))

    def oracle(high: torch.dtype) -> torch.Tensor:
        rows = []
        for b in range(4):
            past = torch.stack([cache[ancestors[b, p], p] for p in range(lengths[b])]).to(high)
            rows.append(attend(q[b : b + 1].to(high), past[:, 0], past[:, 1], causal=False)[0])
        return torch.stack(rows)

    actual = kernels.decode_attention(q, cache, ancestors, lengths)
    assert_close_as_torch("decode", actual, oracle(dtype), oracle(wide(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_found_through_the_index(dtype: torch.dtype) -> None:
    q, memory = torch.randn(5, 2, 64).to(dtype), torch.randn(3, 7, 2, 2, 64).to(dtype)
    index, keys = torch.tensor([2, 0, 0, 2, 2]), torch.tensor([7, 1, 3])

    def oracle(high: torch.dtype) -> torch.Tensor:
        rows = []
        for b, m in enumerate(index.tolist()):
            k, v = memory[m, : keys[m]].to(high).unbind(1)
            rows.append(attend(q[b : b + 1].to(high), k, v, causal=False)[0])
        return torch.stack(rows)

    actual = kernels.decode_cross_attention(q, memory, index, keys)
    assert_close_as_torch("decode cross", actual, oracle(dtype), oracle(wide(dtype)))


def test_shapes_are_checked() -> None:
    q = torch.zeros(2, 2, 64)
    with pytest.raises(ValueError, match="need ancestors of that shape"):
        kernels.decode_attention(
            q, torch.zeros(2, 6, 2, 2, 64), torch.zeros(2, 5).long(), torch.ones(2).long()
        )
    with pytest.raises(ValueError, match="2 queries need as many indices; there are 3"):
        kernels.decode_cross_attention(q, torch.zeros(2, 6, 2, 2, 64), torch.zeros(3).long())
