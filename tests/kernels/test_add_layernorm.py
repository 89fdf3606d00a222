"""Every implementation of add_layernorm that can run here, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from forcing import Recorder
from gate import Case, Gate, Run, forced
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels

# Widths of one element, around the vector length, of the three models, and beyond one block.
WIDTHS = [1, 3, 16, 17, 31, 64, 192, 768, 1024, 1025, 3000]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6


def inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, residual = torch.randn(2, rows, width).to(dtype)
    weight, bias = torch.randn(2, width).to(dtype)
    return x, residual, weight, bias


def norm(high: torch.dtype, total: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(total.to(high), weight.shape, weight.to(high), bias.to(high), EPS)


def of_two(
    rows: int, width: int, dtype: torch.dtype, scale: float = 1.0, kept: bool = True
) -> Case:
    """The sum is rounded to the tensors' dtype; its LayerNorm is that of the rounded sum."""
    x, residual, weight, bias = inputs(rows, width, dtype)
    if scale != 1.0:
        x, residual = x * scale + scale, residual * scale
    public = kernels.add_layernorm if kept else kernels.layernorm_of_sum

    def formula(high: torch.dtype, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor):
        total = x + residual
        out = norm(high, total, weight, bias)
        return (total.to(high), out) if kept else out

    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    return Case(lambda *t: public(*t, EPS), formula, tensors)


def of_one(rows: int, width: int, dtype: torch.dtype, affine: torch.dtype) -> Case:
    x, _, weight, bias = inputs(rows, width, dtype)
    tensors = {"x": x, "weight": weight.to(affine), "bias": bias.to(affine)}
    return Case(lambda *t: kernels.layernorm(*t, EPS), norm, tensors)


def all_cases() -> dict[str, Callable[[], Case]]:
    cases: dict[str, Callable[[], Case]] = {}
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        for width in WIDTHS:
            cases[f"5 rows of {width}, {short}"] = partial(of_two, 5, width, dtype)
        for rows in (0, 1):
            cases[f"{rows} rows, {short}"] = partial(of_two, rows, 768, dtype)
        cases[f"one tensor, {short}"] = partial(of_one, 7, 100, dtype, dtype)
        cases[f"the sum not kept, {short}"] = partial(of_two, 7, 100, dtype, kept=False)
        cases[f"fp32 weights, {short}"] = partial(of_one, 9, 64, dtype, torch.float32)
    cases["rows for several threads"] = partial(of_two, 300, 768, torch.bfloat16)
    for scale in (1e-20, 1e4, 1e18):
        cases[f"values around {scale}"] = partial(of_two, 4, 768, torch.float32, scale)
    return cases


class TestAddLayernorm(Gate):
    room = "add_layernorm"
    cases = all_cases()
    few = ("5 rows of 17, float32", "one tensor, bfloat16", "the sum not kept, float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_the_sum_is_that_of_torch(implementation: str, dtype: torch.dtype) -> None:
    x, residual, weight, bias = inputs(5, 1025, dtype)
    with forced(Run("add_layernorm", implementation)):
        total, _ = kernels.add_layernorm(x, residual, weight, bias, EPS)
    torch.testing.assert_close(total, x + residual, rtol=0, atol=0)


def test_the_inner_of_two_wishes_counts() -> None:
    arguments = inputs(2, 8, torch.float32)
    with (
        kernels.use("reference"),
        forced(Run("add_layernorm", "native")),
        Recorder() as recorder,
    ):
        kernels.add_layernorm(*arguments, EPS)
    assert recorder.names == ["blip_fast.add_layernorm.native"]


def test_shapes_and_dtypes_are_checked() -> None:
    x, residual, weight, bias = inputs(2, 8, torch.float32)
    with pytest.raises(ValueError, match=r"needs weight and bias of shape \(8,\)"):
        kernels.layernorm(x, weight[:7], bias, EPS)
    with pytest.raises(ValueError, match="must agree"):
        kernels.add_layernorm(x, residual.bfloat16(), weight, bias, EPS)
