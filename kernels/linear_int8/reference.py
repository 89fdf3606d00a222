"""Linear on an int8 weight, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from blip_fast.kernels.linear_int8.weight import QuantizedWeight, quantise_rows


def linear_int8(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """One step after the other; sums of whole numbers are exact in float64."""
    integers, scales = quantise_rows(x)
    sums = F.linear(integers.double(), weight.integers().double())
    y = sums.float() * (weight.scales * scales)
    if bias is not None:
        y = y + bias
    if activation == "gelu":
        y = F.gelu(y)
    return (y if residual is None else y + residual).to(x.dtype)
