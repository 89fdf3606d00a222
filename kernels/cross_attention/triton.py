"""Cross-attention for GPUs: texts of one image are rows of one table, its memory is read in place.

Queries do not see one another, so what counts is only which memory they look at. A first kernel
lists the rows by image; then a program takes a block of an image's rows, whatever texts they are
of, and in the backward pass a block of an image's keys with all its rows: each gradient is summed
by one program in a fixed order, without atomics. The host asks the device for nothing: how many
blocks an image has is found from the list by the programs themselves.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.attention import config as widths
from blip_fast.kernels.attention.online import (
    LOG2E,
    add_pairs,
    add_queries,
    attend,
    finish,
    load_rows,
    store_rows,
)
from blip_fast.kernels.cross_attention import config


@triton.jit
def group_kernel(offsets_ptr, index_ptr, rows_ptr, starts_ptr, texts, CHUNK: tl.constexpr):
    """List the rows by image, in the order of texts.

    The first programs, one a text, write their rows to rows_ptr [T]; the others, one an image and
    one more, the place of an image's first row to starts_ptr [M + 1].
    """
    program = tl.program_id(0)
    image = (program - texts).to(tl.int64)
    mine = program * 0  # of the texts of my image, only those before this count
    if program < texts:
        image = tl.load(index_ptr + program)
        mine = program
    before = tl.zeros([CHUNK], tl.int32)
    for start in range(0, texts, CHUNK):
        text = start + tl.arange(0, CHUNK)
        known = text < texts
        other = tl.load(index_ptr + text, mask=known, other=0)
        length = tl.load(offsets_ptr + text + 1, mask=known, other=0)
        length -= tl.load(offsets_ptr + text, mask=known, other=0)
        earlier = (other < image) | ((other == image) & (text < mine))
        before += tl.where(earlier, length, 0)
    first = tl.sum(before, 0)
    if program < texts:
        begin = tl.load(offsets_ptr + program)
        end = tl.load(offsets_ptr + program + 1)
        for start in range(begin, end, CHUNK):
            row = start + tl.arange(0, CHUNK)
            tl.store(rows_ptr + first + row - begin, row, mask=row < end)
    else:
        tl.store(starts_ptr + program - texts, first)


@triton.jit
def _block_of_image(starts_ptr, block, images, ROWS: tl.constexpr):
    """Which image the block-th program serves, and which of its blocks of rows.

    Image m's blocks begin at starts[m] // ROWS + m: it has room for all of them, as rounding up
    adds one at most, and the place needs no sum over images.
    """
    low = block * 0
    high = low + images
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // ROWS + middle <= block:
            low = middle
        else:
            high = middle
    return low, block - (tl.load(starts_ptr + low) // ROWS + low)


@triton.jit
def _rows_of_block(
    rows_ptr, starts_ptr, lengths_ptr, keys, tokens, images, heads, HAS_LENGTHS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Of this program: head, image, its rows [ROWS] (`tokens` where there is none), its keys."""
    program = tl.program_id(0)
    head = program % heads
    image, block = _block_of_image(starts_ptr, program // heads, images, ROWS)
    begin = tl.load(starts_ptr + image)
    place = begin + block * ROWS + tl.arange(0, ROWS)
    known = place < tl.load(starts_ptr + image + 1)
    row = tl.load(rows_ptr + place, mask=known, other=tokens).to(tl.int64)
    if HAS_LENGTHS:
        keys = tl.load(lengths_ptr + image).to(tl.int32)
    return head, image, row, keys


@triton.jit
def forward_kernel(
    q_ptr, memory_ptr, lengths_ptr, rows_ptr, starts_ptr, out_ptr, logsumexp_ptr,
    image_stride, key_stride, keys, tokens, images, heads, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: up to ROWS queries of one image and head against all keys of the image."""
    head, image, row, keys = _rows_of_block(
        rows_ptr, starts_ptr, lengths_ptr, keys, tokens, images, heads, HAS_LENGTHS, ROWS
    )
    if tl.min(row, 0) >= tokens:
        return
    part = heads * WIDTH
    q = load_rows(q_ptr + head * WIDTH, row, part, tokens, WIDTH, BLOCK, True)
    k_ptr = memory_ptr + image.to(tl.int64) * image_stride + head * WIDTH
    v_ptr = k_ptr + part
    key = tl.arange(0, KEYS)

    result = tl.zeros([ROWS, BLOCK], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    for start in range(0, keys, KEYS):
        k = load_rows(k_ptr, start + key, key_stride, keys, WIDTH, BLOCK, True)
        v = load_rows(v_ptr, start + key, key_stride, keys, WIDTH, BLOCK, True)
        inside = (start + key < keys)[None, :]
        result, total, most = attend(result, total, most, q, k, v, inside, scale, True)

    result, logsumexp = finish(result, total, most, scale)
    store_rows(out_ptr + head * WIDTH, row, part, tokens, result, WIDTH, BLOCK)
    tl.store(logsumexp_ptr + row * heads + head, logsumexp, mask=row < tokens)


@triton.jit
def queries_kernel(
    grad_ptr, q_ptr, memory_ptr, out_ptr, logsumexp_ptr, lengths_ptr, rows_ptr, starts_ptr,
    grad_q_ptr, delta_ptr, image_stride, key_stride, keys, tokens, images, heads, scale, root,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of up to ROWS queries of one image and head.

    delta_ptr: as logsumexp, the sum of output times its gradient, for `pairs_kernel` to read.
    """
    head, image, row, keys = _rows_of_block(
        rows_ptr, starts_ptr, lengths_ptr, keys, tokens, images, heads, HAS_LENGTHS, ROWS
    )
    if tl.min(row, 0) >= tokens:
        return
    part, at_head = heads * WIDTH, head * WIDTH
    q = load_rows(q_ptr + at_head, row, part, tokens, WIDTH, BLOCK, True)
    grad = load_rows(grad_ptr + at_head, row, part, tokens, WIDTH, BLOCK, True)
    out = load_rows(out_ptr + at_head, row, part, tokens, WIDTH, BLOCK, True)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    at_row = row * heads + head
    tl.store(delta_ptr + at_row, delta, mask=row < tokens)
    logsumexp = tl.load(logsumexp_ptr + at_row, mask=row < tokens, other=0.0) * LOG2E
    k_ptr = memory_ptr + image.to(tl.int64) * image_stride + at_head

    result = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, keys, KEYS):
        key = start + tl.arange(0, KEYS)
        k = load_rows(k_ptr, key, key_stride, keys, WIDTH, BLOCK, True)
        v = load_rows(k_ptr + part, key, key_stride, keys, WIDTH, BLOCK, True)
        result = add_queries(result, q, k, v, grad, logsumexp, delta, row, key, scale, False)
    store_rows(grad_q_ptr + at_head, row, part, tokens, result * root, WIDTH, BLOCK)


@triton.jit
def pairs_kernel(
    grad_ptr, q_ptr, memory_ptr, logsumexp_ptr, delta_ptr, lengths_ptr, rows_ptr, starts_ptr,
    grad_memory_ptr, image_stride, key_stride, keys, tokens, heads, scale, root,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of KEYS keys and values of one image and head, over all its rows.

    An image that no text looks at, and keys past its length, get zeros.
    """
    program, blocks = tl.program_id(0), tl.cdiv(keys, KEYS)
    head = program % heads
    first = program // heads % blocks * KEYS
    image = (program // (heads * blocks)).to(tl.int64)
    begin, end = tl.load(starts_ptr + image), tl.load(starts_ptr + image + 1)
    length = keys
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + image).to(tl.int32)
    if first >= length:
        end = begin
    part, at_head = heads * WIDTH, head * WIDTH
    k_ptr = memory_ptr + image * image_stride + at_head
    key = first + tl.arange(0, KEYS)
    k = load_rows(k_ptr, key, key_stride, length, WIDTH, BLOCK, True)
    v = load_rows(k_ptr + part, key, key_stride, length, WIDTH, BLOCK, True)

    grad_k = tl.zeros([KEYS, BLOCK], tl.float32)
    grad_v = tl.zeros([KEYS, BLOCK], tl.float32)
    for start in range(begin, end, ROWS):
        place = start + tl.arange(0, ROWS)
        row = tl.load(rows_ptr + place, mask=place < end, other=tokens).to(tl.int64)
        q = load_rows(q_ptr + at_head, row, part, tokens, WIDTH, BLOCK, True)
        grad = load_rows(grad_ptr + at_head, row, part, tokens, WIDTH, BLOCK, True)
        at_row = row * heads + head
        known = row < tokens
        logsumexp = tl.load(logsumexp_ptr + at_row, mask=known, other=0.0) * LOG2E
        delta = tl.load(delta_ptr + at_row, mask=known, other=0.0)
        grad_k, grad_v = add_pairs(
            grad_k, grad_v, q, k, v, grad, logsumexp, delta, row, key, scale, False
        )
    inside = (key < length)[:, None]
    grad_k, grad_v = tl.where(inside, grad_k * root, 0.0), tl.where(inside, grad_v, 0.0)
    out_ptr = grad_memory_ptr + image * keys * (2 * part) + at_head
    store_rows(out_ptr, key, 2 * part, keys, grad_k, WIDTH, BLOCK)
    store_rows(out_ptr + part, key, 2 * part, keys, grad_v, WIDTH, BLOCK)


def _group(offsets: Tensor, index: Tensor, tokens: int, images: int) -> tuple[Tensor, Tensor]:
    """Rows by image [T], and where each image's begin [M + 1]."""
    rows = offsets.new_empty(tokens)
    starts = offsets.new_empty(images + 1)
    texts = index.numel()
    group_kernel[(texts + images + 1,)](
        offsets, index, rows, starts, texts, CHUNK=config.CHUNK, num_warps=4
    )
    return rows, starts


def cross_attention(
    q: Tensor, memory: Tensor, offsets: Tensor, index: Tensor, key_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The operator: the output and the log-sum-exp of every query and head."""
    tokens, heads, width = q.shape
    out, logsumexp = torch.empty_like(q), q.new_empty((tokens, heads), dtype=torch.float32)
    images, keys = memory.shape[:2]
    if not out.numel():
        return out, logsumexp
    rows, starts = _group(offsets, index, tokens, images)
    tiles = widths.launch(config.FORWARD, width, q.dtype)
    forward_kernel[((tokens // tiles["ROWS"] + images) * heads,)](
        q, memory, key_lengths, rows, starts, out, logsumexp,
        memory.stride(0), memory.stride(1), keys, tokens, images, heads,
        width**-0.5 * LOG2E.value, WIDTH=width, BLOCK=widths.block(width),
        HAS_LENGTHS=key_lengths is not None, **tiles,
    )  # fmt: skip
    return out, logsumexp


def cross_attention_backward(
    grad: Tensor,
    q: Tensor,
    memory: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    offsets: Tensor,
    index: Tensor,
    key_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operator: the gradients of queries and of all memories, contiguous."""
    tokens, heads, width = q.shape
    images, keys = memory.shape[:2]
    grad_q, delta = torch.empty_like(q), torch.empty_like(logsumexp)
    grad_memory = memory.new_empty(memory.shape)
    if not grad_q.numel() or not grad_memory.numel():
        return grad_q.zero_(), grad_memory.zero_()
    rows, starts = _group(offsets, index, tokens, images)
    strides = memory.stride(0), memory.stride(1)
    root = width**-0.5
    kind = {
        "WIDTH": width,
        "BLOCK": widths.block(width),
        "HAS_LENGTHS": key_lengths is not None,
    }
    tiles = widths.launch(config.QUERIES, width, q.dtype)
    queries_kernel[((tokens // tiles["ROWS"] + images) * heads,)](
        grad, q, memory, out, logsumexp, key_lengths, rows, starts, grad_q, delta, *strides,
        keys, tokens, images, heads, root * LOG2E.value, root, **kind, **tiles,
    )  # fmt: skip
    tiles = widths.launch(config.PAIRS, width, q.dtype)
    pairs_kernel[(triton.cdiv(keys, tiles["KEYS"]) * heads * images,)](
        grad, q, memory, logsumexp, delta, key_lengths, rows, starts, grad_memory, *strides,
        keys, tokens, heads, root * LOG2E.value, root, **kind, **tiles,
    )  # fmt: skip
    return grad_q, grad_memory
