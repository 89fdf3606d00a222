"""add_layernorm in Triton: the operator forward, its gradients in two stages."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gate import Case, Gate
from tolerance import assert_close_as_torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.kernels.add_layernorm import config, reference, triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-6


def _norm(high: torch.dtype, total: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(total.to(high), weight.shape, weight.to(high), bias.to(high), EPS)


def _of_two(
    rows: int, width: int, dtype: torch.dtype, kept: bool = True, scale: float = 1.0
) -> Case:
    """The sum is rounded to the tensors' dtype; its LayerNorm is that of the rounded sum."""
    x, residual = torch.randn(2, rows, width) * scale
    weight, bias = torch.randn(2, width)
    public = kernels.add_layernorm if kept else kernels.layernorm_of_sum

    def formula(high: torch.dtype, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor):
        total = x + residual
        out = _norm(high, total, weight, bias)
        return (total.to(high), out) if kept else out

    tensors = {"x": x + (scale if scale != 1 else 0), "residual": residual}
    tensors |= {"weight": weight, "bias": bias}
    return Case(
        lambda *t: public(*t, EPS), formula, {name: t.to(dtype) for name, t in tensors.items()}
    )


def _of_one(rows: int, width: int, dtype: torch.dtype, affine: torch.dtype) -> Case:
    x, (weight, bias) = torch.randn(rows, width).to(dtype), torch.randn(2, width).to(affine)
    return Case(
        lambda *t: kernels.layernorm(*t, EPS), _norm, {"x": x, "weight": weight, "bias": bias}
    )


class TestAddLayernorm(Gate):
    room = "add_layernorm"
    implementations = ("triton",)
    cases = {
        **{f"width 17, {d}": partial(_of_two, 5, 17, d) for d in DTYPES},
        **{f"width 768, {d}": partial(_of_two, 9, 768, d) for d in DTYPES},
        **{f"the sum not kept, {d}": partial(_of_two, 7, 100, d, False) for d in DTYPES},
        **{f"one tensor, {d}": partial(_of_one, 7, 100, d, d) for d in DTYPES},
        "fp32 weights": partial(_of_one, 9, 64, torch.bfloat16, torch.float32),
        "several tiles a program": partial(_of_two, 40, 768, torch.bfloat16),
        "many narrow rows": partial(_of_two, 300, 3, torch.float32),
        "one element": partial(_of_two, 3, 1, torch.float32),
        "one row": partial(_of_two, 1, 1025, torch.bfloat16),
        "no rows": partial(_of_two, 0, 768, torch.bfloat16),
        "the widest": partial(_of_two, 2, config.MAX_WIDTH, torch.bfloat16),
        **{
            f"values around {scale}": partial(_of_two, 4, 768, torch.float32, True, scale)
            for scale in (1e-20, 1e4, 1e18)
        },
    }
    few = (
        "width 17, torch.float32",
        "one tensor, torch.bfloat16",
        "the sum not kept, torch.float32",
    )


def test_weight_gradients_do_not_follow_the_number_of_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor with the lots in which their sums are added, of which 200 programs' fill several."""
    grad_sum, grad_out, total = torch.randn(3, 50, 200)
    weight = torch.randn(200)
    monkeypatch.setitem(config.REDUCE, "ROWS", 4)
    monkeypatch.setattr(config, "BACKWARD_ELEMENTS", 512)
    arguments = (grad_sum, grad_out, total, weight)
    same = reference.add_layernorm_backward(*arguments, EPS)
    truth = reference.add_layernorm_backward(*(t.double() for t in arguments), EPS)
    for programs in (1, 3, 200):
        monkeypatch.setattr(config, "programs", lambda device, n=programs: n)
        actual = triton.add_layernorm_backward(*arguments, EPS)
        for triple in zip(actual, same, truth, strict=True):
            assert_close_as_torch(f"{programs} programs", *triple)


@pytest.mark.parametrize("width", [3, 768])
def test_a_nan_stays_in_its_row(width: int) -> None:
    x, residual = torch.randn(2, 9, width)
    x[4, 1] = torch.nan
    weight = torch.ones(width)
    with kernels.use("triton", "add_layernorm"):
        total, out = kernels.add_layernorm(x, residual, weight, weight, EPS)
    others = torch.arange(9) != 4
    assert out[4].isnan().all() and out[others].isfinite().all()
    assert torch.equal(total[others], (x + residual)[others])


def test_wider_rows_go_elsewhere() -> None:
    width = config.MAX_WIDTH + 1
    x, weight = torch.randn(2, width), torch.ones(width)
    with (
        kernels.use("triton", "add_layernorm"),
        pytest.raises(ValueError, match="rows of 4096 at most"),
    ):
        kernels.layernorm(x, weight, weight, EPS)
    assert kernels.layernorm(x, weight, weight, EPS).shape == x.shape
