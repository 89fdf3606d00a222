"""Self-attention, dense and packed, against a loop over sequences and heads in fp64."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from oracles import attend
from tolerance import assert_close_as_torch, wide
from torch import Tensor

from blip_fast import kernels


def oracle(qkv: Tensor, lengths: list[int], causal: bool) -> Tensor:
    parts = qkv.split(lengths)
    return torch.cat([attend(p[:, 0], p[:, 1], p[:, 2], causal) for p in parts])


# Lengths that are no multiple of anything, one token alone, and equal ones.
@pytest.mark.parametrize("lengths", [[1], [5, 1, 17, 2], [3, 3, 3], [197]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed(lengths: list[int], causal: bool, dtype: torch.dtype) -> None:
    qkv = torch.randn(sum(lengths), 3, 2, 64).to(dtype)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    actual = kernels.attention(qkv, offsets, max(lengths), causal=causal)
    truth = oracle(qkv.to(wide(dtype)), lengths, causal)
    assert_close_as_torch("packed", actual, oracle(qkv, lengths, causal), truth)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_is_packed_of_equal_lengths(causal: bool) -> None:
    qkv = torch.randn(3, 7, 3, 2, 64)
    dense = kernels.attention(qkv, causal=causal)
    truth = oracle(qkv.double().flatten(0, 1), [7] * 3, causal).view(3, 7, 2, 64)
    assert_close_as_torch("dense", dense, truth.float(), truth)


def test_no_sequences() -> None:
    offsets = torch.zeros(1, dtype=torch.int32)
    assert kernels.attention(torch.zeros(0, 3, 2, 64), offsets, 0).shape == (0, 2, 64)


def test_gradients_reach_every_token_of_its_own_sequence_only() -> None:
    qkv = torch.randn(5, 3, 1, 64, requires_grad=True)
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    kernels.attention(qkv, offsets, 3)[:2].square().sum().backward()
    assert qkv.grad is not None
    assert qkv.grad[:2].abs().sum() > 0
    assert qkv.grad[2:].abs().sum() == 0


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="both offsets and max_length"):
        kernels.attention(torch.zeros(4, 3, 2, 64), torch.tensor([0, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"\[N, S, 3, H, D\]"):
        kernels.attention(torch.zeros(4, 3, 2, 64))
