"""Matrix product with bias, exact GELU and residual in its epilogue."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from blip_fast.kernels._ops import Room
from blip_fast.kernels.linear import reference

Activation = Literal["gelu"]

_room = Room("linear")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x @ weight.T + bias) + residual.

    Args:
        x: [..., K].
        weight: [N, K], in x's dtype.
        bias: [N].
        activation: "gelu", the exact one with erf, or none.
        residual: [..., N].

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: where the widths do not fit.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} has rows of width {x.shape[-1]}; the weight "
            f"{tuple(weight.shape)} takes {weight.shape[1]}"
        )
    _room.choose(x)
    return reference.linear(x, weight, bias, activation, residual)
