"""Matrix product with bias, exact GELU and residual in its epilogue.

Few rows go to the native kernel, which reads the weight as it lies, once; many go to oneDNN, which
reads a packed copy, kept beside the weight unless rows are thousands (`config.py` has the limits,
`onednn.py` the cache). Many rows of float32 go to the reference. Both others are for inference:
where a gradient is wanted the reference runs too.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor

from blip_fast.kernels._ops import NATIVE_LOADED, REFERENCE, Room, register_cpu, register_fake
from blip_fast.kernels.linear import onednn, reference
from blip_fast.kernels.linear.config import NATIVE_ROWS

Activation = Literal["gelu"]

_room = Room("linear", native=(torch.float32, torch.bfloat16), onednn=(torch.bfloat16,))
_native_rows = NATIVE_ROWS[torch.ops.blip_fast.cpu_isa()] if NATIVE_LOADED else {}


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
        bias: [N], likewise.
        activation: "gelu", the exact one with erf, or none.
        residual: [..., N], likewise.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: where shapes do not fit, or where an implementation was asked for by name that
            cannot run: it has no gradient and one is wanted, or dtypes are mixed.
    """
    _check(x, weight, bias, activation, residual)
    tensors = [t for t in (x, weight, bias, residual) if t is not None]
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    suited = not wants_gradient and all(t.dtype == x.dtype for t in tensors)
    chosen = _room.choose(x, _order(x) if suited else ())
    if chosen == REFERENCE:
        return reference.linear(x, weight, bias, activation, residual)
    if wants_gradient:
        raise ValueError(
            f"linear's {chosen!r} has no gradient and one is wanted; ask for 'reference', or for "
            "no implementation by name, or run under torch.no_grad()"
        )
    if not suited:
        dtypes = ", ".join(str(t.dtype).removeprefix("torch.") for t in tensors)
        raise ValueError(f"linear's {chosen!r} takes tensors of one dtype; these are {dtypes}")
    residual = None if residual is None else residual.contiguous()
    bias = None if bias is None else bias.contiguous()
    operator = _room.operator(chosen)
    return operator(x.contiguous(), weight.contiguous(), bias, activation == "gelu", residual)


def _order(x: Tensor) -> tuple[str, ...]:
    few = prod(x.shape[:-1]) <= _native_rows.get(x.dtype, 0)
    return ("native", "onednn") if few else ("onednn",)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> None:
    if not x.ndim or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} has rows of width {x.shape[-1] if x.ndim else 'none'}; the weight "
            f"{tuple(weight.shape)} takes {weight.shape[-1]}"
        )
    if activation not in (None, "gelu"):
        raise ValueError(f"activation is {activation!r}; it must be 'gelu' or None")
    result = (*x.shape[:-1], weight.shape[0])
    for name, tensor, shape in (("bias", bias, result[-1:]), ("residual", residual, result)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"x {tuple(x.shape)} and weight {tuple(weight.shape)} need a {name} of shape "
                f"{tuple(shape)}; it is {tuple(tensor.shape)}"
            )


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, residual: Tensor | None
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


register_cpu("linear", "onednn", onednn.linear)
register_fake("linear", _fake)
