"""Matrix product with an int8 weight, x quantised on the way, and the epilogue of `linear`.

The weight's rows have a scale each, fixed when it is packed; x's rows get theirs in every call
(LLM.int8(), arXiv 2208.07339, section 2, calls this vector-wise quantisation). Sums are whole
numbers, the same on every processor. For inference: rounding has no gradient.

PyTorch's own int8 product on CPUs, `onednn.qlinear_pointwise`, takes one scale for all of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, Room, register_fake
from blip_fast.kernels.linear import Activation
from blip_fast.kernels.linear_int8 import reference
from blip_fast.kernels.linear_int8.weight import QuantizedWeight

__all__ = ["QuantizedWeight", "linear_int8"]

_room = Room("linear_int8", native=(torch.float32, torch.bfloat16))


def linear_int8(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x @ weight.T + bias) + residual, with x and weight rounded to 8 bits by rows.

    Args:
        x: [..., K].
        weight: of shape [N, K].
        bias: [N], in x's dtype.
        activation: "gelu", the exact one with erf, or none.
        residual: [..., N], in x's dtype.

    Returns:
        [..., N] in x's dtype; NaN in rows where x has an infinity or a NaN.

    Raises:
        ValueError: where shapes do not fit, a gradient is wanted, or an implementation was asked
            for by name that cannot run.
    """
    _check(x, weight, bias, activation, residual)
    tensors = [t for t in (x, bias, residual) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ValueError(
            "linear_int8 has no gradient and one is wanted; train in a floating dtype, or run "
            "under torch.no_grad()"
        )
    one_dtype = all(t.dtype == x.dtype for t in tensors)
    chosen = _room.choose(x, None if one_dtype else ())
    if chosen == REFERENCE:
        return reference.linear_int8(x, weight, bias, activation, residual)
    if not one_dtype:
        dtypes = ", ".join(str(t.dtype).removeprefix("torch.") for t in tensors)
        raise ValueError(f"linear_int8's {chosen!r} takes tensors of one dtype; these are {dtypes}")
    out: Tensor = _room.operator(chosen)(
        x.contiguous(),
        weight.packed,
        weight.scales,
        weight.starts,
        None if bias is None else bias.contiguous(),
        activation == "gelu",
        None if residual is None else residual.contiguous(),
    )
    return out


def _check(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> None:
    n, k = weight.shape
    if not x.ndim or x.shape[-1] != k:
        raise ValueError(f"x is {tuple(x.shape)}; the weight {(n, k)} takes rows of width {k}")
    if activation not in (None, "gelu"):
        raise ValueError(f"activation is {activation!r}; it must be 'gelu' or None")
    result = (*x.shape[:-1], n)
    for name, tensor, shape in (("bias", bias, (n,)), ("residual", residual, result)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"x {tuple(x.shape)} and weight {(n, k)} need a {name} of shape {shape}; it is "
                f"{tuple(tensor.shape)}"
            )


def _fake(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    gelu: bool,
    residual: Tensor | None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], scales.numel()))


register_fake("linear_int8", _fake)
