"""Residual addition and LayerNorm for GPUs: rows stay in registers, read once and written once.

The backward pass recomputes the statistics, which costs no memory traffic. The gradients of weight
and bias are summed in two stages: each program sums the rows that it serves, then a second kernel
sums the programs' results. Both in a fixed order, so two runs are bit-equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.add_layernorm import config


@triton.jit
def _statistics(total, inside, width, eps):
    """Centred rows, 0 outside, and the reciprocal of their standard deviations [ROWS, 1]."""
    mean = tl.sum(total, axis=1) / width
    centred = tl.where(inside, total - mean[:, None], 0.0)
    # Each square is scaled before it is summed: their sum would overflow above 1e17.
    variance = tl.sum(centred * (centred * (1.0 / width)), axis=1)
    return centred, (1.0 / tl.sqrt(variance + eps))[:, None]


@triton.jit
def forward_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, rows, width, eps,
    HAS_RESIDUAL: tl.constexpr, KEEP_SUM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows [ROWS, BLOCK], all their columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]

    total = tl.load(x_ptr + place, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + place, mask=inside, other=0.0)
        # Rounded as torch rounds a sum: what is normalised is what the caller is given.
        total = (total.to(tl.float32) + residual.to(tl.float32)).to(total.dtype)
        if KEEP_SUM:
            tl.store(sum_ptr + place, total, mask=inside)

    centred, rstd = _statistics(total.to(tl.float32), inside, width, eps)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    out = centred * rstd * weight[None, :] + bias[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad_sum_ptr, grad_out_ptr, total_ptr, weight_ptr, grad_x_ptr, partial_ptr, rows, width, eps,
    HAS_GRAD_SUM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: every G-th tile of ROWS rows, G the number of programs.

    partial_ptr: [2, G, width] float32, the program's sums for weight and bias.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    known = column < width
    weight = tl.load(weight_ptr + column, mask=known, other=0.0).to(tl.float32)[None, :]
    share = 1.0 / width
    grad_weight = tl.zeros([BLOCK], tl.float32)
    grad_bias = tl.zeros([BLOCK], tl.float32)

    for tile in tl.range(program, tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & known[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        total = tl.load(total_ptr + place, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_out_ptr + place, mask=inside, other=0.0).to(tl.float32)

        centred, rstd = _statistics(total, inside, width, eps)
        normed = centred * rstd
        grad_bias += tl.sum(grad, axis=0)
        grad_weight += tl.sum(grad * normed, axis=0)

        g = grad * weight
        mean_g = tl.sum(g * share, axis=1)[:, None]
        mean_gh = tl.sum(g * normed * share, axis=1)[:, None]
        grad_x = rstd * (g - mean_g - normed * mean_gh)
        if HAS_GRAD_SUM:
            grad_x += tl.load(grad_sum_ptr + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + place, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)

    place = program * width + column
    tl.store(partial_ptr + place, grad_weight, mask=known)
    tl.store(partial_ptr + programs * width + place, grad_bias, mask=known)


@triton.jit
def reduce_kernel(
    partial_ptr, grad_weight_ptr, grad_bias_ptr, programs, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums partial [2, G, width] over G: the weight's from programs (., 0), the bias's (., 1)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    which = tl.program_id(1)
    known = column < width
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, programs, ROWS):
        row = begin + tl.arange(0, ROWS)
        place = (which * programs + row)[:, None] * width + column[None, :]
        inside = (row < programs)[:, None] & known[None, :]
        sums += tl.load(partial_ptr + place, mask=inside, other=0.0)
    total = tl.sum(sums, axis=0)
    if which == 0:
        tl.store(grad_weight_ptr + column, total.to(grad_weight_ptr.dtype.element_ty), mask=known)
    else:
        tl.store(grad_bias_ptr + column, total.to(grad_bias_ptr.dtype.element_ty), mask=known)


def add_layernorm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    """The operator: contiguous [..., width] to the sum, empty where not kept, and its LayerNorm."""
    width = x.shape[-1]
    rows = x.numel() // width if width else 0
    kept = keep_sum and residual is not None
    total = torch.empty_like(x) if kept else x.new_empty(0)
    out = torch.empty_like(x)
    if rows:
        launch = config.forward(width)
        forward_kernel[(triton.cdiv(rows, launch["ROWS"]),)](
            x, x if residual is None else residual, weight, bias, total, out, rows, width, eps,
            HAS_RESIDUAL=residual is not None, KEEP_SUM=kept, **launch,
        )  # fmt: skip
    return total, out


def add_layernorm_backward(
    grad_sum: Tensor | None, grad_out: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: gradients of x (and of the residual: they are equal), weight and bias."""
    width = total.shape[-1]
    rows = total.numel() // width if width else 0
    grad_x = torch.empty_like(total)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    launch = config.backward(width, total.element_size())
    programs = min(triton.cdiv(rows, launch["ROWS"]), config.programs(total.device))
    partial = total.new_empty(2, programs, width, dtype=torch.float32)
    if programs:
        backward_kernel[(programs,)](
            grad_out if grad_sum is None else grad_sum, grad_out, total, weight, grad_x, partial,
            rows, width, eps, HAS_GRAD_SUM=grad_sum is not None, **launch,
        )  # fmt: skip
    if width:
        reduce_kernel[(triton.cdiv(width, config.REDUCE["COLUMNS"]), 2)](
            partial, grad_weight, grad_bias, programs, width, **config.REDUCE
        )
    return grad_x, grad_weight, grad_bias
