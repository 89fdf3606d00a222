"""Self-attention in Triton, against a loop over sequences and heads in higher precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import pytest
import torch
from gate import Case, Gate
from oracles import attend
from tolerance import assert_close_as_torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.kernels.attention import config

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _dense(shape: tuple[int, ...], causal: bool, dtype: torch.dtype, scale: float = 1.0) -> Case:
    images, tokens, heads, width = shape
    qkv = (torch.randn(images, tokens, 3, heads, width) * scale).to(dtype)
    return Case(
        call=partial(kernels.attention, causal=causal),
        formula=lambda high, x: (
            _formula(x.to(high).flatten(0, 1), [tokens] * images, causal)
            .view(images, tokens, heads, width)
            .to(high)
        ),
        tensors={"qkv": qkv},
        gradients=() if scale > 1 else None,
    )


def _packed(lengths: list[int], causal: bool, dtype: torch.dtype, width: int = 64) -> Case:
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    longest = max(lengths, default=0)
    return Case(
        call=lambda x: kernels.attention(x, offsets, longest, causal=causal),
        formula=lambda high, x: _formula(x.to(high), lengths, causal),
        tensors={"qkv": torch.randn(sum(lengths), 3, 2, width).to(dtype)},
    )


def _formula(qkv: Tensor, lengths: list[int], causal: bool) -> Tensor:
    parts = [attend(*part.unbind(1), causal) for part in qkv.split(lengths)]
    return torch.cat(parts) if parts else qkv[:, 0]


class TestAttention(Gate):
    room = "attention"
    implementations = ("triton",)
    cases = {
        **{f"packed, {d}": partial(_packed, [5, 1, 0, 17], False, d) for d in DTYPES},
        **{f"packed, causal, {d}": partial(_packed, [3, 70, 9], True, d) for d in DTYPES},
        **{f"several tiles, {d}": partial(_dense, (1, 197, 1, 64), False, d) for d in DTYPES},
        "causal over tiles": partial(_dense, (1, 150, 1, 64), True, torch.bfloat16),
        "one token": partial(_dense, (2, 1, 1, 64), True, torch.bfloat16),
        "no sequences": partial(_packed, [], True, torch.bfloat16),
        "an empty sequence": partial(_packed, [0], False, torch.bfloat16),
        **{f"heads of 88, {d}": partial(_dense, (1, 40, 2, 88), False, d) for d in DTYPES},
        "heads of 88, causal": partial(_packed, [3, 70, 9], True, torch.bfloat16, 88),
        "heads of 16": partial(_packed, [40, 3], True, torch.float32, 16),
        "heads of 33": partial(_packed, [40, 3], True, torch.float16, 33),
        "large scores": partial(_dense, (1, 80, 1, 64), False, torch.float32, 1e4),
        "huge scores": partial(_dense, (1, 80, 1, 64), True, torch.bfloat16, 1e15),
    }


def test_4700_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a sequence gets, in tiles as large as the interpreter likes them."""
    for table in (config.FORWARD, config.QUERIES, config.PAIRS):
        monkeypatch.setitem(table, 64, {"ROWS": 1024, "KEYS": 1024})
    qkv, grad = torch.randn(1, 4700, 3, 1, 64).bfloat16(), torch.randn(1, 4700, 1, 64).bfloat16()

    def run(attend: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = qkv.to(dtype).requires_grad_()
        out = attend(leaf)
        return out.detach(), torch.autograd.grad(out, leaf, grad.to(dtype))[0]

    def by_torch(qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    with kernels.use("triton"):
        actual = run(partial(kernels.attention, causal=True), torch.bfloat16)
    same, truth = run(by_torch, torch.bfloat16), run(by_torch, torch.float32)
    for name, *triple in zip(("output", "gradient"), actual, same, truth, strict=True):
        assert_close_as_torch(name, *triple)


def test_a_nan_reaches_its_own_sequence_and_head_only() -> None:
    qkv = torch.randn(12, 3, 2, 64)
    qkv[2, 1, 0, 5] = torch.nan  # a key of the first sequence, first head
    with kernels.use("triton"):
        out = kernels.attention(qkv, torch.tensor([0, 7, 12], dtype=torch.int32), 7)
    assert out[:7, 0].isnan().all()
    assert out[:7, 1].isfinite().all() and out[7:].isfinite().all()


def test_a_sequence_does_not_depend_on_its_neighbours() -> None:
    lengths = [9, 40, 1]
    qkv = torch.randn(sum(lengths), 3, 2, 64).bfloat16()
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    with kernels.use("triton"):
        together = kernels.attention(qkv, offsets, 40, causal=True)
        for alone, part in zip(qkv.split(lengths), together.split(lengths), strict=True):
            assert torch.equal(kernels.attention(alone[None], causal=True)[0], part)


def test_what_it_cannot_do_raises_by_name_and_goes_elsewhere_without() -> None:
    qkv = torch.zeros(1, 4, 3, 1, 144)
    with kernels.use("triton"), pytest.raises(ValueError, match="heads are 144 wide"):
        kernels.attention(qkv)
    assert kernels.attention(qkv).shape == (1, 4, 1, 144)
