"""Linear with its epilogue, against the formula in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import assert_close_as_torch, wide

from blip_fast import kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_against_the_formula(
    dtype: torch.dtype, activation: str | None, with_residual: bool
) -> None:
    x, weight = torch.randn(2, 5, 24).to(dtype), torch.randn(7, 24).to(dtype)
    bias, residual = torch.randn(7).to(dtype), torch.randn(2, 5, 7).to(dtype)

    def formula(high: torch.dtype) -> torch.Tensor:
        y = x.to(high) @ weight.to(high).T + bias.to(high)
        if activation:
            y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        return y + residual.to(high) if with_residual else y

    actual = kernels.linear(x, weight, bias, activation, residual if with_residual else None)
    assert_close_as_torch("linear", actual, formula(dtype), formula(wide(dtype)))


def test_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="rows of width 4; the weight .* takes 5"):
        kernels.linear(torch.randn(2, 4), torch.randn(3, 5))
