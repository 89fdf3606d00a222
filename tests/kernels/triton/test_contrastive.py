"""ITC with soft targets in Triton: both softmaxes online, the bank in parts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gate import Case, Gate, Largest
from tolerance import assert_close_as_torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.kernels import _ops
from blip_fast.kernels.contrastive import config, reference, triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _formula(
    high: torch.dtype,
    query: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    alpha: float,
) -> Tensor:
    """In fp64, or what torch makes of it in another precision."""
    if high != torch.float64:
        tensors = (t.to(high) for t in (query, momentum, bank))
        return reference.contrastive(*tensors, temperature, ids, bank_ids, alpha)
    query, momentum, bank = query.to(high), momentum.to(high), bank.to(high).detach()
    same = (ids[:, None] == bank_ids).to(high)
    soft = (momentum @ bank.T / temperature.detach()).softmax(1)
    y = alpha * soft.detach() + (1 - alpha) * same / same.sum(1, keepdim=True)
    return -(y * (query @ bank.T / temperature).log_softmax(1)).sum(1)


def _features(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def _ids(rows: int, bank: int) -> tuple[Tensor, Tensor]:
    """Some of the batch's ids repeat, and some of the bank's others are positives too."""
    ids = torch.arange(rows) // 2
    return ids, torch.cat([ids, torch.randint(-2, 3, (bank - rows,))])


def _case(
    rows: int, bank: int, width: int, dtype: torch.dtype, alpha: float = 0.4, heat: float = 0.07
) -> Case:
    ids, temperature = _ids(rows, bank), torch.tensor([heat])

    def formula(high: torch.dtype, *tensors: Tensor) -> Tensor:
        high = high if high == dtype else torch.float64  # fp32 is what a loss has in any case
        return _formula(high, *tensors, temperature.to(_wide_heat(high)), *ids, alpha)

    return Case(
        lambda *t: kernels.contrastive(*t, temperature, *ids, alpha),
        formula,
        {
            "features": _features(rows, width).to(dtype),
            "momentum": _features(rows, width).to(dtype),
            "bank": _features(bank, width).to(dtype),
        },
        gradients=("features",),
    )


def _wide_heat(high: torch.dtype) -> torch.dtype:
    return torch.float64 if high == torch.float64 else torch.float32


class TestContrastive(Gate):
    room = "contrastive"
    implementations = ("triton",)
    cases = {
        **{f"of each dtype, {d}": partial(_case, 5, 30, 12, d) for d in DTYPES},
        **{f"several parts, {d}": partial(_case, 40, 300, 70, d) for d in DTYPES},
        **{f"alpha {a}": partial(_case, 5, 30, 12, torch.float32, a) for a in (0.0, 1.0)},
        **{
            f"temperature {t}": partial(_case, 5, 30, 12, torch.float32, 0.4, t)
            for t in (0.001, 0.5)
        },
        "wide features": partial(_case, 3, 70, config.COLUMNS + 44, torch.float32),
        "one row": partial(_case, 1, 1, 16, torch.float32),
        "no rows": partial(_case, 0, 30, 16, torch.float32),
    }
    few = ("of each dtype, torch.float32",)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heat", [0.07, 0.001, 0.5])
def test_gradient_of_the_temperature(heat: float, dtype: torch.dtype) -> None:
    query, momentum, bank = (_features(n, 12).to(dtype) for n in (5, 5, 100))
    ids = _ids(5, 100)
    # Of several, because torch's error of the temperature's one number may be zero by chance.
    grads = torch.randn(12, 5)

    def run(function, high: torch.dtype) -> Tensor:
        temperature = torch.tensor(heat).to(_wide_heat(high)).requires_grad_()
        losses = function(temperature)
        return torch.stack([
            torch.autograd.grad(losses, temperature, grad, retain_graph=True)[0]
            for grad in grads.to(losses.dtype)
        ])  # fmt: skip

    def ours(temperature: Tensor) -> Tensor:
        with kernels.use("triton", "contrastive"):
            return kernels.contrastive(query, momentum, bank, temperature, *ids, 0.4)

    def formula(high: torch.dtype, temperature: Tensor) -> Tensor:
        return _formula(high, query, momentum, bank, temperature, *ids, 0.4)

    same = run(partial(formula, dtype), dtype)
    truth = run(partial(formula, torch.float64), torch.float64)
    assert_close_as_torch(f"{dtype} {heat}", run(ours, dtype), same, truth)


def test_a_queue_of_another_dtype() -> None:
    query, momentum, bank = _features(5, 64).bfloat16(), _features(5, 64), _features(100, 64)
    arguments = (query, momentum, bank, torch.tensor(0.07), *_ids(5, 100))
    losses, statistics = triton.contrastive(*arguments, 0.4)
    grad, _ = triton.contrastive_backward(losses, *arguments, statistics, 0.4)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(losses, reference.contrastive(*arguments, 0.4))


def test_similarities_are_never_stored_and_the_bank_streams() -> None:
    """Of 70 rows and 600 entries nothing is made that has a number for each pair."""
    arguments = (*(_features(n, 8) for n in (70, 70, 600)), torch.tensor(0.07), *_ids(70, 600))
    with Largest() as largest:
        losses, statistics = triton.contrastive(*arguments, 0.4)
        triton.contrastive_backward(losses, *arguments, statistics, 0.4)
    assert largest.elements == 600 * 8 < 70 * 600 / 4  # the bank, as it came


@pytest.mark.skipif(not _ops.TRITON_INTERPRETED, reason="the interpreter alone counts loads")
def test_a_pass_reads_the_bank_once() -> None:
    from interpreter import loads_of

    query, momentum, bank = (_features(n, 16) for n in (5, 5, 320))
    arguments = (query, momentum, bank, torch.tensor(0.07), *_ids(5, 320))
    with loads_of(bank) as counts:
        triton.contrastive(*arguments, 0.4)
    assert counts.eq(1).all()


def test_losses_do_not_follow_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*(_features(n, 16) for n in (3, 3, 700)), torch.tensor(0.07), *_ids(3, 700))
    expected = triton.contrastive(*arguments, 0.4)
    monkeypatch.setattr(config, "ENTRIES_OF_PART", 128)
    monkeypatch.setitem(config.MERGE, "PARTS", 2)
    torch.testing.assert_close(triton.contrastive(*arguments, 0.4), expected)


def test_gradients_do_not_follow_the_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*(_features(n, 32) for n in (3, 3, 300)), torch.tensor(0.07), *_ids(3, 300))
    losses, statistics = triton.contrastive(*arguments, 0.4)
    expected = triton.contrastive_backward(losses, *arguments, statistics, 0.4)
    for parts in (1, 3, 100):
        monkeypatch.setattr(
            config, "backward_parts", lambda device, rows, tiles, n=parts: min(n, tiles)
        )
        actual = triton.contrastive_backward(losses, *arguments, statistics, 0.4)
        torch.testing.assert_close(actual, expected)
