"""Attention of newest tokens for GPUs: a memory is read once for all sequences of its image.

A program finds the sequences of its image by itself, in the index: nothing is sorted before. Long
memories are split over programs, and a second kernel merges their sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.attention import config as widths
from blip_fast.kernels.attention.online import LOG2E, attend, finish, load_rows, store_rows
from blip_fast.kernels.decode_attention import config


@triton.jit
def past_kernel(
    q_ptr, cache_ptr, ancestors_ptr, lengths_ptr, out_ptr, row_stride, position_stride, positions,
    heads, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """One program: one query of one head against its sequence's past, found through ancestors."""
    program = tl.program_id(0)
    sequence, head = (program // heads).to(tl.int64), program % heads
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at_out = (sequence * heads + head) * WIDTH + column
    q = tl.load(q_ptr + at_out, mask=inside, other=0.0).to(tl.float32)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    k_ptr = cache_ptr + head * WIDTH + column[None, :]

    result = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([POSITIONS], tl.float32)
    most = tl.max(total, 0) + float("-inf")
    for start in range(0, length, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        known = position < length
        row = tl.load(ancestors_ptr + sequence * positions + position, mask=known, other=0)
        ptrs = k_ptr + (row * row_stride + position * position_stride)[:, None]
        mask = known[:, None] & inside[None, :]
        k = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(ptrs + heads * WIDTH, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(known, tl.sum(q[None, :] * k, 1), float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 0))
        weights = tl.exp2((scores - larger) * scale)
        shrink = tl.exp2((most - larger) * scale)
        total = total * shrink + weights
        result = result * shrink + tl.sum(weights[:, None] * v, 0)
        most = larger
    everything = tl.sum(total, 0)
    result = result / tl.where(everything == 0.0, 1.0, everything)
    tl.store(out_ptr + at_out, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _matches(index_ptr, start, sequences, image, CHUNK: tl.constexpr):
    """Sequences from `start` [CHUNK], and 1 for those of the image, else 0."""
    sequence = start + tl.arange(0, CHUNK)
    found = tl.load(index_ptr + sequence, mask=sequence < sequences, other=-1) == image
    return sequence, found.to(tl.int32)


@triton.jit
def _members(index_ptr, image, first, count, sequences, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """The image's sequences from the first-th on, [ROWS]; `sequences` where there is none."""
    slot = first + tl.arange(0, ROWS)
    member = tl.zeros([ROWS], tl.int32)
    seen = first * 0
    for start in range(0, sequences, CHUNK):
        sequence, found = _matches(index_ptr, start, sequences, image, CHUNK)
        rank = seen + tl.cumsum(found, 0) - 1
        here = (rank[None, :] == slot[:, None]) & (found[None, :] > 0)
        member += tl.sum(tl.where(here, sequence[None, :], 0), 1)
        seen += tl.sum(found, 0)
    return tl.where(slot < count, member, sequences)


@triton.jit
def memory_kernel(
    q_ptr, memory_ptr, index_ptr, lengths_ptr, out_ptr, sums_ptr, image_stride, key_stride, keys,
    sequences, heads, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_LENGTHS: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: all queries of one image and head against SPLIT_KEYS of its keys.

    out_ptr: [B, H, WIDTH], or with several SPLITS [B, H, SPLITS, BLOCK] float32, not divided.
    sums_ptr: [2, B, H, SPLITS]: the largest score and the sum of weights of each.
    """
    program = tl.program_id(0)
    head = program % heads
    split = program // heads % SPLITS
    image = program // (heads * SPLITS)
    count = program * 0
    for start in range(0, sequences, CHUNK):
        _, found = _matches(index_ptr, start, sequences, image, CHUNK)
        count += tl.sum(found, 0)
    if HAS_LENGTHS:
        keys = tl.load(lengths_ptr + image).to(tl.int32)
    begin = split * SPLIT_KEYS
    end = tl.minimum(keys, begin + SPLIT_KEYS)
    part = heads * WIDTH
    k_ptr = memory_ptr + image.to(tl.int64) * image_stride + head * WIDTH

    for first in range(0, count, ROWS):
        member = _members(index_ptr, image, first, count, sequences, ROWS, CHUNK)
        q = load_rows(q_ptr + head * WIDTH, member, part, sequences, WIDTH, BLOCK, True)
        result = tl.zeros([ROWS, BLOCK], tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        most = tl.full([ROWS], float("-inf"), tl.float32)
        for start in range(begin, end, KEYS):
            key = start + tl.arange(0, KEYS)
            k = load_rows(k_ptr, key, key_stride, end, WIDTH, BLOCK, True)
            v = load_rows(k_ptr + part, key, key_stride, end, WIDTH, BLOCK, True)
            inside = (key < end)[None, :]
            result, total, most = attend(result, total, most, q, k, v, inside, scale, True)
        if SPLITS == 1:
            result, _ = finish(result, total, most, scale)
            store_rows(out_ptr + head * WIDTH, member, part, sequences, result, WIDTH, BLOCK)
        else:
            place = (member.to(tl.int64) * heads + head) * SPLITS + split
            column = tl.arange(0, BLOCK)
            known = member < sequences
            ptrs = out_ptr + place[:, None] * BLOCK + column[None, :]
            tl.store(ptrs, result, mask=known[:, None])
            tl.store(sums_ptr + place, most, mask=known)
            tl.store(sums_ptr + sequences * heads * SPLITS + place, total, mask=known)


@triton.jit
def merge_kernel(
    parts_ptr, sums_ptr, out_ptr, pairs, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One program: the parts of one sequence and head, of which there are `pairs`."""
    pair = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, PADDED), tl.arange(0, BLOCK)
    known = split < SPLITS
    place = pair * SPLITS + split
    most = tl.load(sums_ptr + place, mask=known, other=float("-inf"))
    total = tl.load(sums_ptr + pairs * SPLITS + place, mask=known, other=0.0)
    parts = tl.load(
        parts_ptr + place[:, None] * BLOCK + column[None, :], mask=known[:, None], other=0.0
    )
    largest = tl.max(most, 0)
    # A part without keys has -inf; where no part has keys there is no largest to subtract.
    weights = tl.exp2((most - tl.where(largest == float("-inf"), 0.0, largest)) * scale)
    everything = tl.sum(weights * total, 0)
    result = tl.sum(weights[:, None] * parts, 0) / tl.where(everything == 0.0, 1.0, everything)
    at_out = pair * WIDTH + column
    tl.store(out_ptr + at_out, result.to(out_ptr.dtype.element_ty), mask=column < WIDTH)


def decode_attention(q: Tensor, cache: Tensor, ancestors: Tensor, lengths: Tensor) -> Tensor:
    """The operator: one query a sequence against its past."""
    sequences, heads, width = q.shape
    out = torch.empty_like(q)
    if out.numel():
        past_kernel[(sequences * heads,)](
            q, cache, ancestors, lengths, out, cache.stride(0), cache.stride(1), cache.shape[1],
            heads, width**-0.5 * LOG2E.value, WIDTH=width, BLOCK=widths.block(width),
            **config.PAST,
        )  # fmt: skip
    return out


def decode_cross_attention(
    q: Tensor, memory: Tensor, index: Tensor, key_lengths: Tensor | None
) -> Tensor:
    """The operator: one query a sequence against the memory of its image."""
    sequences, heads, width = q.shape
    images, keys = memory.shape[:2]
    out = torch.empty_like(q)
    if not out.numel():
        return out
    if not keys:
        return out.zero_()
    splits, block = config.splits(keys), widths.block(width)
    parts = sums = out
    if splits > 1:
        parts = q.new_empty((sequences, heads, splits, block), dtype=torch.float32)
        sums = q.new_empty((2, sequences, heads, splits), dtype=torch.float32)
    scale = width**-0.5 * LOG2E.value
    memory_kernel[(images * splits * heads,)](
        q, memory, index, key_lengths, parts, sums, memory.stride(0), memory.stride(1), keys,
        sequences, heads, scale, WIDTH=width, BLOCK=block, HAS_LENGTHS=key_lengths is not None,
        SPLITS=splits, SPLIT_KEYS=config.SPLIT_KEYS, CHUNK=config.CHUNK, **config.memory(q.dtype),
    )  # fmt: skip
    if splits > 1:
        merge_kernel[(sequences * heads,)](
            parts, sums, out, sequences * heads, scale, WIDTH=width, BLOCK=block, SPLITS=splits,
            PADDED=triton.next_power_of_2(splits), num_warps=1,
        )  # fmt: skip
    return out
