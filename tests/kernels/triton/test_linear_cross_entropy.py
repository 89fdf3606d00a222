"""The language-model head and its loss in Triton, logits in registers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gate import Case, Gate, Largest
from tolerance import assert_close_as_torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.kernels.linear_cross_entropy import IGNORE, config, reference, triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _targets(tokens: int, words: int) -> Tensor:
    targets = torch.randint(0, words, (tokens,))
    targets[1::4] = IGNORE
    return targets


def _case(
    tokens: int, words: int, dtype: torch.dtype, smoothing: float = 0.1, width: int = 24
) -> Case:
    targets = _targets(tokens, words)

    def formula(high: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        tensors = [t.to(high) for t in (hidden, weight, bias)]
        if high == torch.float64:  # the reference is fp32
            logits = F.linear(*tensors)
            options = {"ignore_index": IGNORE, "label_smoothing": smoothing, "reduction": "none"}
            return F.cross_entropy(logits, targets, **options)
        return reference.linear_cross_entropy(*tensors, targets, smoothing)

    return Case(
        lambda *t: kernels.linear_cross_entropy(*t, targets, smoothing),
        formula,
        {
            "hidden": torch.randn(tokens, width).to(dtype),
            "weight": torch.randn(words, width).to(dtype),
            "bias": torch.randn(words).to(dtype),
        },
    )


class TestLinearCrossEntropy(Gate):
    room = "linear_cross_entropy"
    implementations = ("triton",)
    cases = {
        **{f"smoothed, {d}": partial(_case, 9, 50, d) for d in DTYPES},
        **{f"not smoothed, {d}": partial(_case, 13, 33, d, 0.0) for d in DTYPES},
        **{f"several parts, {d}": partial(_case, 70, 600, d) for d in DTYPES},
        "whole steps": partial(_case, 5, 300, torch.bfloat16, width=128),
        "an odd width": partial(_case, 5, 70, torch.bfloat16, width=71),
        "one word": partial(_case, 1, 1, torch.float32),
        "one token": partial(_case, 1, 300, torch.bfloat16),
        "no tokens": partial(_case, 0, 50, torch.bfloat16),
    }
    few = ("smoothed, torch.float32", "not smoothed, torch.bfloat16")


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_extreme_logits(scale: float) -> None:
    hidden, weight = torch.randn(9, 16) * scale, torch.randn(1100, 16)
    bias, targets = torch.full((1100,), -1e4), _targets(9, 1100)
    bias[:600] = -torch.inf  # words that no model gives, a part of them and some
    targets[(targets >= 0) & (targets < 600)] = 600
    losses = triton.linear_cross_entropy(hidden, weight, bias, targets, 0.0)[0]
    logits = F.linear(hidden.double(), weight.double(), bias.double())
    truth = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    same = reference.linear_cross_entropy(hidden, weight, bias, targets, 0.0)
    assert_close_as_torch(f"{scale}", losses, same, truth)


def test_targets_that_are_no_tokens_are_refused() -> None:
    if torch.get_default_device().type != "cpu":
        pytest.skip("an assertion on a GPU ends its process")
    hidden, weight, bias = torch.randn(3, 16), torch.randn(50, 16), torch.randn(50)
    for wrong in (50, -1):
        with kernels.use("triton"), pytest.raises(RuntimeError, match="a target is neither"):
            kernels.linear_cross_entropy(hidden, weight, bias, torch.tensor([1, wrong, 2]))


def test_never_more_logits_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the backward pass change no result, and nothing is as large as all logits."""

    targets = _targets(150, 700)
    tensors = (torch.randn(150, 16), torch.randn(700, 16), torch.randn(700), targets)
    losses, logsumexp = triton.linear_cross_entropy(*tensors, 0.1)

    def formula(high: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(high).requires_grad_() for t in tensors[:3]]
        options = {"ignore_index": IGNORE, "label_smoothing": 0.1, "reduction": "none"}
        of_tokens = F.cross_entropy(F.linear(*leaves), targets, **options)
        return torch.autograd.grad(of_tokens, leaves, losses.to(high))

    monkeypatch.setattr(config, "BACKWARD_TOKENS", 64)
    monkeypatch.setattr(config, "BACKWARD_WORDS", 128)
    with Largest() as largest:
        triton.linear_cross_entropy(*tensors, 0.1)
        parts = triton.linear_cross_entropy_backward(losses, *tensors, logsumexp, 0.1)
    assert largest.elements == 700 * 16 < 150 * 700 / 4
    same, truth = formula(torch.float32), formula(torch.float64)
    for name, *triple in zip(("hidden", "weight", "bias"), parts, same, truth, strict=True):
        assert_close_as_torch(name, *triple)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_do_not_follow_groups_and_merges(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tokens that take turns, the last group has fewer; partial results come in three lots."""
    monkeypatch.setattr(config, "GROUP", 2)
    monkeypatch.setattr(config, "TILES", 1)
    monkeypatch.setitem(config.MERGE, "PARTS", 2)
    hidden, weight = torch.randn(2 * 128 + 3, 16).to(dtype), torch.randn(300, 16).to(dtype)
    tensors = hidden, weight, torch.randn(300).to(dtype)
    targets = _targets(len(hidden), 300)
    losses = triton.linear_cross_entropy(*tensors, targets, 0.1)[0]
    options = {"ignore_index": IGNORE, "label_smoothing": 0.1, "reduction": "none"}
    truth = F.cross_entropy(F.linear(*(t.double() for t in tensors)), targets, **options)
    same = reference.linear_cross_entropy(*(t.float() for t in tensors), targets, 0.1)
    assert_close_as_torch("losses", losses, same, truth)


def test_a_loss_does_not_depend_on_its_neighbours() -> None:
    hidden, weight = torch.randn(140, 16), torch.randn(600, 16)
    bias, targets = torch.randn(600), torch.randint(0, 600, (140,))
    together = triton.linear_cross_entropy(hidden, weight, bias, targets, 0.1)[0]
    alone = triton.linear_cross_entropy(hidden[131:132], weight, bias, targets[131:132], 0.1)[0]
    assert together[131:132].equal(alone)
