"""What all attention kernels share: loads of rows, and one step of the softmax in one pass.

Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691. Weights are powers of two: `scale`
is log2(e) / sqrt(D), and `most` the largest score before scaling.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    ptr, row, stride, end, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHECKED: tl.constexpr
):
    """Rows [rows, BLOCK] of a matrix of WIDTH columns; zeros past WIDTH, and past row `end`.

    Unless CHECKED, all rows must lie before `end`.
    """
    column = tl.arange(0, BLOCK)
    ptrs = ptr + row[:, None] * stride + column[None, :]
    if WIDTH == BLOCK:
        if CHECKED:
            return tl.load(ptrs, mask=(row < end)[:, None], other=0.0)
        return tl.load(ptrs)
    inside = (column < WIDTH)[None, :]
    if CHECKED:
        inside = inside & (row < end)[:, None]
    return tl.load(ptrs, mask=inside, other=0.0)


@triton.jit
def store_rows(ptr, row, stride, end, values, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Stores [rows, BLOCK] as far as rows lie before `end` and columns before WIDTH."""
    column = tl.arange(0, BLOCK)
    ptrs = ptr + row[:, None] * stride + column[None, :]
    inside = (row < end)[:, None] & (column < WIDTH)[None, :]
    tl.store(ptrs, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def attend(result, total, most, q, k, v, inside, scale, MASKED: tl.constexpr):
    """Take a block of keys into the sums of a block of queries.

    Args:
        result, total, most: weighted values [ROWS, BLOCK], sum of weights and largest score [ROWS].
        inside: [ROWS, KEYS], or what broadcasts to it: which keys a query sees, where MASKED.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where(inside, scores, float("-inf"))
    larger = tl.maximum(most, tl.max(scores, 1))
    # The difference first: it is exact near the largest score. Scaled apart, in one fused step for
    # one and in two for the other, scores above 1e9 would be off by more than a power holds.
    weights = tl.exp2((scores - larger[:, None]) * scale)
    shrink = tl.exp2((most - larger) * scale)
    total = total * shrink + tl.sum(weights, 1)
    result = result * shrink[:, None]
    result = tl.dot(weights.to(v.dtype), v, result, input_precision="ieee")
    return result, total, larger


@triton.jit
def finish(result, total, most, scale):
    """Divide by the sum of weights; the logarithm of the sum of exponentials beside it.

    Without a key the result is 0 and the logarithm -inf.
    """
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    logsumexp = (most * scale + tl.log2(total)) * LN2
    return result, tl.where(total == 0.0, float("-inf"), logsumexp)


@triton.jit
def add_queries(grad_q, q, k, v, grad, logsumexp, delta, row, key, scale, CAUSAL: tl.constexpr):
    """Add what a block of keys [KEYS, BLOCK] gives to the gradient [ROWS, BLOCK].

    Keys past the end are zeros: whatever their weights, they add nothing.

    Args:
        logsumexp: in powers of two.
        delta: the sum of output times its gradient, [ROWS].
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    weights = tl.exp2(scores * scale - logsumexp[:, None])
    if CAUSAL:
        weights = tl.where(key[None, :] <= row[:, None], weights, 0.0)
    by_value = tl.dot(grad, tl.trans(v), input_precision="ieee")
    by_score = weights * (by_value - delta[:, None])
    return tl.dot(by_score.to(k.dtype), k, grad_q, input_precision="ieee")


@triton.jit
def add_pairs(
    grad_k, grad_v, q, k, v, grad, logsumexp, delta, row, key, scale, CAUSAL: tl.constexpr
):
    """Add what a block of queries [ROWS, BLOCK] gives to the gradients [KEYS, BLOCK].

    Queries past the end are zeros with zero gradients: whatever their weights, they add nothing.

    Args:
        logsumexp: in powers of two.
    """
    scores = tl.dot(k, tl.trans(q), input_precision="ieee")  # [KEYS, ROWS]
    weights = tl.exp2(scores * scale - logsumexp[None, :])
    if CAUSAL:
        weights = tl.where(key[:, None] <= row[None, :], weights, 0.0)
    grad_v = tl.dot(weights.to(grad.dtype), grad, grad_v, input_precision="ieee")
    by_value = tl.dot(v, tl.trans(grad), input_precision="ieee")
    by_score = weights * (by_value - delta[None, :])
    grad_k = tl.dot(by_score.to(q.dtype), q, grad_k, input_precision="ieee")
    return grad_k, grad_v
