"""Self-attention for GPUs: the fused projection is read where it lies, scores are never stored.

Dense images and packed texts are one kernel: a sequence is a range of rows, of equal length or from
offsets. The backward pass makes the weights again, once for the gradients of queries and once for
those of keys and values, so that each is summed by one program in a fixed order: no atomics, two
runs are bit-equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.attention import config
from blip_fast.kernels.attention.online import (
    LOG2E,
    add_pairs,
    add_queries,
    attend,
    finish,
    load_rows,
    store_rows,
)


@triton.jit
def _place(offsets_ptr, length, blocks, heads, PACKED: tl.constexpr):
    """Of this program: block in its sequence, head, the sequence's first row and its length."""
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    sequence = program // (blocks * heads)
    if PACKED:
        begin = tl.load(offsets_ptr + sequence).to(tl.int64)
        length = (tl.load(offsets_ptr + sequence + 1) - begin).to(tl.int32)
    else:
        begin = sequence.to(tl.int64) * length
    return block, head, begin, length


@triton.jit
def forward_kernel(
    qkv_ptr, offsets_ptr, out_ptr, logsumexp_ptr, length, blocks, heads, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS queries of one head against all keys of their sequence."""
    block, head, begin, length = _place(offsets_ptr, length, blocks, heads, PACKED)
    first = block * ROWS
    if first >= length:
        return
    part = heads * WIDTH  # from queries to keys to values
    q_ptr = qkv_ptr + begin * (3 * part) + head * WIDTH
    k_ptr, v_ptr = q_ptr + part, q_ptr + 2 * part
    row = first + tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    q = load_rows(q_ptr, row, 3 * part, length, WIDTH, BLOCK, True)

    result = tl.zeros([ROWS, BLOCK], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    end = length
    free = length // KEYS * KEYS  # before it, every query sees every key
    if CAUSAL:
        end = tl.minimum(length, first + ROWS)
        free = tl.minimum(free, first // KEYS * KEYS)
    for start in range(0, free, KEYS):
        k = load_rows(k_ptr, start + key, 3 * part, length, WIDTH, BLOCK, False)
        v = load_rows(v_ptr, start + key, 3 * part, length, WIDTH, BLOCK, False)
        result, total, most = attend(result, total, most, q, k, v, True, scale, False)
    for start in range(free, end, KEYS):
        at = start + key
        k = load_rows(k_ptr, at, 3 * part, length, WIDTH, BLOCK, True)
        v = load_rows(v_ptr, at, 3 * part, length, WIDTH, BLOCK, True)
        inside = (at < length)[None, :]
        if CAUSAL:
            inside = inside & (at[None, :] <= row[:, None])
        result, total, most = attend(result, total, most, q, k, v, inside, scale, True)

    result, logsumexp = finish(result, total, most, scale)
    out_ptr += begin * part + head * WIDTH
    store_rows(out_ptr, row, part, length, result, WIDTH, BLOCK)
    tl.store(logsumexp_ptr + (begin + row) * heads + head, logsumexp, mask=row < length)


@triton.jit
def queries_kernel(
    grad_ptr, qkv_ptr, out_ptr, logsumexp_ptr, offsets_ptr, grad_qkv_ptr, delta_ptr,
    length, blocks, heads, scale, root,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of ROWS queries of one head.

    delta_ptr: as logsumexp, the sum of output times its gradient, for `pairs_kernel` to read.
    """
    block, head, begin, length = _place(offsets_ptr, length, blocks, heads, PACKED)
    first = block * ROWS
    if first >= length:
        return
    part = heads * WIDTH
    q_ptr = qkv_ptr + begin * (3 * part) + head * WIDTH
    k_ptr, v_ptr = q_ptr + part, q_ptr + 2 * part
    row = first + tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    at_out = begin * part + head * WIDTH
    q = load_rows(q_ptr, row, 3 * part, length, WIDTH, BLOCK, True)
    grad = load_rows(grad_ptr + at_out, row, part, length, WIDTH, BLOCK, True)
    out = load_rows(out_ptr + at_out, row, part, length, WIDTH, BLOCK, True)

    at_row = (begin + row) * heads + head
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + at_row, delta, mask=row < length)
    logsumexp = tl.load(logsumexp_ptr + at_row, mask=row < length, other=0.0) * LOG2E

    result = tl.zeros([ROWS, BLOCK], tl.float32)
    end = length
    if CAUSAL:
        end = tl.minimum(length, first + ROWS)
    for start in range(0, end, KEYS):
        at = start + key
        k = load_rows(k_ptr, at, 3 * part, length, WIDTH, BLOCK, True)
        v = load_rows(v_ptr, at, 3 * part, length, WIDTH, BLOCK, True)
        result = add_queries(result, q, k, v, grad, logsumexp, delta, row, at, scale, CAUSAL)
    grad_ptr = grad_qkv_ptr + begin * (3 * part) + head * WIDTH
    store_rows(grad_ptr, row, 3 * part, length, result * root, WIDTH, BLOCK)


@triton.jit
def pairs_kernel(
    grad_ptr, qkv_ptr, logsumexp_ptr, delta_ptr, offsets_ptr, grad_qkv_ptr,
    length, blocks, heads, scale, root,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of KEYS keys and values of one head, over all their queries."""
    block, head, begin, length = _place(offsets_ptr, length, blocks, heads, PACKED)
    first = block * KEYS
    if first >= length:
        return
    part = heads * WIDTH
    q_ptr = qkv_ptr + begin * (3 * part) + head * WIDTH
    grad_ptr += begin * part + head * WIDTH
    key = first + tl.arange(0, KEYS)
    k = load_rows(q_ptr + part, key, 3 * part, length, WIDTH, BLOCK, True)
    v = load_rows(q_ptr + 2 * part, key, 3 * part, length, WIDTH, BLOCK, True)

    grad_k = tl.zeros([KEYS, BLOCK], tl.float32)
    grad_v = tl.zeros([KEYS, BLOCK], tl.float32)
    start_row = 0
    if CAUSAL:
        start_row = first // ROWS * ROWS  # earlier queries do not see these keys
    for start in range(start_row, length, ROWS):
        row = start + tl.arange(0, ROWS)
        q = load_rows(q_ptr, row, 3 * part, length, WIDTH, BLOCK, True)
        grad = load_rows(grad_ptr, row, part, length, WIDTH, BLOCK, True)
        at_row = (begin + row) * heads + head
        known = row < length
        logsumexp = tl.load(logsumexp_ptr + at_row, mask=known, other=0.0) * LOG2E
        delta = tl.load(delta_ptr + at_row, mask=known, other=0.0)
        grad_k, grad_v = add_pairs(
            grad_k, grad_v, q, k, v, grad, logsumexp, delta, row, key, scale, CAUSAL
        )
    grad_ptr = grad_qkv_ptr + begin * (3 * part) + part + head * WIDTH
    store_rows(grad_ptr, key, 3 * part, length, grad_k * root, WIDTH, BLOCK)
    store_rows(grad_ptr + part, key, 3 * part, length, grad_v, WIDTH, BLOCK)


def attention(
    qkv: Tensor, offsets: Tensor | None, max_length: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """The operator: contiguous qkv to the output and the log-sum-exp of every query and head."""
    shape = [*qkv.shape[:-3], *qkv.shape[-2:]]
    out, logsumexp = qkv.new_empty(shape), qkv.new_empty(shape[:-1], dtype=torch.float32)
    *_, heads, width = shape
    length, sequences = _extent(qkv, offsets, max_length)
    tiles = config.launch(config.FORWARD, width, qkv.dtype)
    blocks = triton.cdiv(length, tiles["ROWS"])
    if out.numel():
        forward_kernel[(blocks * heads * sequences,)](
            qkv, offsets, out, logsumexp, length, blocks, heads, width**-0.5 * LOG2E.value,
            WIDTH=width, BLOCK=config.block(width), CAUSAL=causal, PACKED=offsets is not None,
            **tiles,
        )  # fmt: skip
    return out, logsumexp


def attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    offsets: Tensor | None,
    max_length: int,
    causal: bool,
) -> Tensor:
    """The operator: the gradient of all of qkv, from the output's and what forward left."""
    grad_qkv, delta = torch.empty_like(qkv), torch.empty_like(logsumexp)
    *_, heads, width = qkv.shape
    length, sequences = _extent(qkv, offsets, max_length)
    if not grad_qkv.numel():
        return grad_qkv
    kind = {
        "WIDTH": width,
        "BLOCK": config.block(width),
        "CAUSAL": causal,
        "PACKED": offsets is not None,
    }
    root = width**-0.5
    tiles = config.launch(config.QUERIES, width, qkv.dtype)
    blocks = triton.cdiv(length, tiles["ROWS"])
    queries_kernel[(blocks * heads * sequences,)](
        grad, qkv, out, logsumexp, offsets, grad_qkv, delta, length, blocks, heads,
        root * LOG2E.value, root, **kind, **tiles,
    )  # fmt: skip
    tiles = config.launch(config.PAIRS, width, qkv.dtype)
    blocks = triton.cdiv(length, tiles["KEYS"])
    pairs_kernel[(blocks * heads * sequences,)](
        grad, qkv, logsumexp, delta, offsets, grad_qkv, length, blocks, heads,
        root * LOG2E.value, root, **kind, **tiles,
    )  # fmt: skip
    return grad_qkv


def _extent(qkv: Tensor, offsets: Tensor | None, max_length: int) -> tuple[int, int]:
    """The length of the longest sequence, and the number of them."""
    if offsets is None:
        return qkv.shape[1], qkv.shape[0]
    return max_length, offsets.numel() - 1
