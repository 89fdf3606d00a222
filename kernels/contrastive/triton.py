"""ITC with soft targets for GPUs: one pass over the bank, similarities in registers.

Forward, a program compares its rows, as features and as momentum features, with a part of the bank
and keeps an online softmax of each (Milakov and Gimelshein, arXiv 1805.02867); a second kernel
merges the parts. Backward, the similarities are made again; the parts' sums towards the gradient
are added by a second kernel, in a fixed order. `statistics` are those of `chunked.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.contrastive import config

# Finite, so that its difference to any similarity, and its product with 0, is a number.
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def _similarities(
    features_ptr, momentum_ptr, bank_ptr, temperature, row, entry, width,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of features and of momentum features to the entries, by the temperature; all must exist."""
    step = tl.arange(0, STEP)
    student = tl.zeros([row.shape[0], entry.shape[0]], tl.float32)
    teacher = tl.zeros([row.shape[0], entry.shape[0]], tl.float32)
    row_place = row.to(tl.int64)[:, None] * width + step[None, :]
    entry_place = entry.to(tl.int64)[None, :] * width + step[:, None]
    for begin in range(0, width, STEP):
        inside = begin + step < width
        features = tl.load(features_ptr + row_place + begin, mask=inside[None, :], other=0.0)
        momentum = tl.load(momentum_ptr + row_place + begin, mask=inside[None, :], other=0.0)
        entries = tl.load(bank_ptr + entry_place + begin, mask=inside[:, None], other=0.0)
        student = tl.dot(features, entries, student, input_precision=PRECISION)
        teacher = tl.dot(momentum, entries, teacher, input_precision=PRECISION)
    return student / temperature, teacher / temperature


@triton.jit
def forward_kernel(
    features_ptr, momentum_ptr, bank_ptr, temperature_ptr, id_ptr, bank_id_ptr, partial_ptr,
    rows, bank, width, parts,
    ENTRIES_OF_PART: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows against one part of the bank, program (row block, part).

    partial_ptr: [7, parts, rows] float32. Of the part's similarities: the students' largest and sum
    of powers, the teachers' largest and sum of powers, the sum of the teachers' powers times the
    students' similarities, the sum of the positives' similarities, and the number of positives.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    known_row = tl.minimum(row, rows - 1)
    temperature = tl.load(temperature_ptr).to(tl.float32)
    row_id = tl.load(id_ptr + known_row)

    most = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    teacher_most = tl.full([ROWS], LOWEST, tl.float32)
    teacher_total = tl.zeros([ROWS], tl.float32)
    soft = tl.zeros([ROWS], tl.float32)
    positive = tl.zeros([ROWS], tl.float32)
    count = tl.zeros([ROWS], tl.float32)
    end = tl.minimum((part + 1) * ENTRIES_OF_PART, bank)
    for begin in range(part * ENTRIES_OF_PART, end, ENTRIES):
        entry = begin + tl.arange(0, ENTRIES)
        known_entry = tl.minimum(entry, bank - 1)
        student, teacher = _similarities(
            features_ptr, momentum_ptr, bank_ptr, temperature, known_row, known_entry, width,
            STEP, PRECISION,
        )  # fmt: skip
        inside = (entry < bank)[None, :]
        same = (tl.load(bank_id_ptr + known_entry)[None, :] == row_id[:, None]) & inside
        count += tl.sum(same.to(tl.float32), axis=1)
        positive += tl.sum(tl.where(same, student, 0.0), axis=1)

        student = tl.where(inside, student, LOWEST)
        before = most
        most = tl.maximum(most, tl.max(student, axis=1))
        total *= tl.exp(before - most)
        total += tl.sum(tl.exp(student - most[:, None]), axis=1)

        teacher = tl.where(inside, teacher, LOWEST)
        before = teacher_most
        teacher_most = tl.maximum(teacher_most, tl.max(teacher, axis=1))
        weights = tl.exp(teacher - teacher_most[:, None])
        shrink = tl.exp(before - teacher_most)
        teacher_total = teacher_total * shrink + tl.sum(weights, axis=1)
        soft = soft * shrink + tl.sum(weights * student, axis=1)

    known = row < rows
    size = tl.cast(parts, tl.int64) * rows
    place = partial_ptr + part * rows + row
    tl.store(place, most, mask=known)
    tl.store(place + size, total, mask=known)
    tl.store(place + 2 * size, teacher_most, mask=known)
    tl.store(place + 3 * size, teacher_total, mask=known)
    tl.store(place + 4 * size, soft, mask=known)
    tl.store(place + 5 * size, positive, mask=known)
    tl.store(place + 6 * size, count, mask=known)


@triton.jit
def merge_kernel(
    partial_ptr, loss_ptr, statistics_ptr, rows, parts, alpha,
    ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Losses and statistics of ROWS rows from the forward kernel's partial results."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = row < rows
    size = tl.cast(parts, tl.int64) * rows
    most = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    teacher_most = tl.full([ROWS], LOWEST, tl.float32)
    teacher_total = tl.zeros([ROWS], tl.float32)
    soft = tl.zeros([ROWS], tl.float32)
    positive = tl.zeros([ROWS], tl.float32)
    count = tl.zeros([ROWS], tl.float32)
    for begin in range(0, parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & known[None, :]
        place = partial_ptr + part[:, None] * rows + row[None, :]

        part_most = tl.load(place, mask=inside, other=LOWEST)
        before = most
        most = tl.maximum(most, tl.max(part_most, axis=0))
        powers = tl.load(place + size, mask=inside, other=0.0) * tl.exp(part_most - most[None, :])
        total = total * tl.exp(before - most) + tl.sum(powers, axis=0)

        part_most = tl.load(place + 2 * size, mask=inside, other=LOWEST)
        before = teacher_most
        teacher_most = tl.maximum(teacher_most, tl.max(part_most, axis=0))
        scale = tl.exp(part_most - teacher_most[None, :])
        shrink = tl.exp(before - teacher_most)
        powers = tl.load(place + 3 * size, mask=inside, other=0.0) * scale
        teacher_total = teacher_total * shrink + tl.sum(powers, axis=0)
        part_soft = tl.load(place + 4 * size, mask=inside, other=0.0) * scale
        soft = soft * shrink + tl.sum(part_soft, axis=0)
        positive += tl.sum(tl.load(place + 5 * size, mask=inside, other=0.0), axis=0)
        count += tl.sum(tl.load(place + 6 * size, mask=inside, other=0.0), axis=0)

    expected = alpha * (soft / teacher_total) + (1 - alpha) * (positive / count)
    tl.store(loss_ptr + row, tl.log(total) - (expected - most), mask=known)
    statistics_ptr += row
    tl.store(statistics_ptr, most, mask=known)
    tl.store(statistics_ptr + rows, teacher_most, mask=known)
    tl.store(statistics_ptr + 2 * rows, tl.log(total), mask=known)
    tl.store(statistics_ptr + 3 * rows, tl.log(teacher_total), mask=known)
    tl.store(statistics_ptr + 4 * rows, count, mask=known)
    tl.store(statistics_ptr + 5 * rows, expected - most, mask=known)


@triton.jit
def backward_kernel(
    features_ptr, momentum_ptr, bank_ptr, temperature_ptr, id_ptr, bank_id_ptr, statistics_ptr,
    towards_ptr, heat_ptr, rows, bank, width, tiles_of_part, alpha,
    PRECISION: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows, one part of the bank, COLUMNS columns of the features' gradient.

    With d = softmax - y a similarity's gradient: towards_ptr, [parts, rows, width] float32, sums
    d * entry; heat_ptr, [parts, rows] float32, sums d * similarity, for the temperature.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    known_row = tl.minimum(row, rows - 1)
    known_column = column < width
    temperature = tl.load(temperature_ptr).to(tl.float32)
    row_id = tl.load(id_ptr + known_row)
    statistics_ptr += known_row
    most = tl.load(statistics_ptr)[:, None]
    teacher_most = tl.load(statistics_ptr + rows)[:, None]
    log_total = tl.load(statistics_ptr + 2 * rows)[:, None]
    teacher_log_total = tl.load(statistics_ptr + 3 * rows)[:, None]
    of_positive = ((1 - alpha) / tl.load(statistics_ptr + 4 * rows))[:, None]
    expected = tl.load(statistics_ptr + 5 * rows)[:, None]

    towards = tl.zeros([ROWS, COLUMNS], tl.float32)
    heat = tl.zeros([ROWS], tl.float32)
    first = part * tiles_of_part * ENTRIES
    for begin in range(first, tl.minimum(first + tiles_of_part * ENTRIES, bank), ENTRIES):
        entry = begin + tl.arange(0, ENTRIES)
        known_entry = tl.minimum(entry, bank - 1)
        student, teacher = _similarities(
            features_ptr, momentum_ptr, bank_ptr, temperature, known_row, known_entry, width,
            STEP, PRECISION,
        )  # fmt: skip
        same = tl.load(bank_id_ptr + known_entry)[None, :] == row_id[:, None]
        y = alpha * tl.exp(teacher - teacher_most - teacher_log_total)
        y += tl.where(same, of_positive, 0.0)
        student = student - most
        d = tl.where((entry < bank)[None, :], tl.exp(student - log_total) - y, 0.0)
        # The d of a row sum to 0 but for rounding, so similarities may be taken less any number:
        # less the expected one, a relative error of all powers of a row errs no more than itself.
        heat += tl.sum(d * (student - expected), axis=1)
        place = known_entry.to(tl.int64)[:, None] * width + column[None, :]
        entries = tl.load(bank_ptr + place, mask=known_column[None, :], other=0.0)
        towards = tl.dot(d.to(entries.dtype), entries, towards, input_precision=PRECISION)

    line = part.to(tl.int64) * rows + row
    inside = (row < rows)[:, None] & known_column[None, :]
    tl.store(towards_ptr + line[:, None] * width + column[None, :], towards, mask=inside)
    if tl.program_id(2) == 0:
        tl.store(heat_ptr + line, heat, mask=row < rows)


@triton.jit
def reduce_kernel(
    towards_ptr, grad_ptr, temperature_ptr, out_ptr, rows, width, parts,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The features' gradient: the sum of `towards` over its parts, times grad / temperature."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    size = tl.cast(rows, tl.int64) * width
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for part in range(0, parts):
        total += tl.load(towards_ptr + part * size + place, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
    total *= (grad / tl.load(temperature_ptr).to(tl.float32))[:, None]
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=inside)


def contrastive(
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """The operator: [B, E] against [Q, E] -> losses [B] and statistics [6, B], float32."""
    inputs = _prepared(features, momentum, bank, temperature, ids, bank_ids)
    (rows, width), entries = features.shape, len(bank)
    losses = features.new_empty(rows, dtype=torch.float32)
    statistics = losses.new_empty(6, rows)
    if not rows:
        return losses, statistics
    parts = triton.cdiv(entries, config.ENTRIES_OF_PART)
    partial = losses.new_empty(7, parts, rows)
    launch = config.forward(inputs[0].element_size(), width)
    forward_kernel[(triton.cdiv(rows, launch["ROWS"]), parts)](
        *inputs, partial, rows, entries, width, parts, ENTRIES_OF_PART=config.ENTRIES_OF_PART,
        PRECISION=_precision(), **launch,
    )  # fmt: skip
    merge_kernel[(triton.cdiv(rows, config.MERGE["ROWS"]),)](
        partial, losses, statistics, rows, parts, alpha, **config.MERGE
    )
    return losses, statistics


def contrastive_backward(
    grad: Tensor,
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    statistics: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """The operator: gradients of features and temperature from that of the losses [B]."""
    inputs = _prepared(features, momentum, bank, temperature, ids, bank_ids)
    grad = grad.contiguous()
    (rows, width), entries = features.shape, len(bank)
    grad_features = torch.empty_like(features, memory_format=torch.contiguous_format)
    if not rows:
        return grad_features, torch.zeros_like(temperature)
    launch = config.backward(inputs[0].element_size(), width)
    tiles = triton.cdiv(entries, launch["ENTRIES"])
    row_programs = triton.cdiv(rows, launch["ROWS"])
    column_programs = triton.cdiv(width, config.COLUMNS)
    parts = config.backward_parts(features.device, row_programs * column_programs, tiles)
    tiles_of_part = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, tiles_of_part)
    towards = statistics.new_empty(parts, rows, width)
    heat = statistics.new_empty(parts, rows)
    backward_kernel[(row_programs, parts, column_programs)](
        *inputs, statistics, towards, heat, rows, entries, width, tiles_of_part, alpha,
        COLUMNS=config.COLUMNS, PRECISION=_precision(), **launch,
    )  # fmt: skip
    reduce_kernel[(triton.cdiv(rows, config.REDUCE_ROWS), column_programs)](
        towards, grad, temperature, grad_features, rows, width, parts,
        ROWS=config.REDUCE_ROWS, COLUMNS=config.COLUMNS,
    )  # fmt: skip
    # Terms of both signs nearly cancel, so the few numbers left are summed in fp64.
    grad_temperature = -(heat.double().sum(0) * grad.double()).sum() / temperature.double()
    return grad_features, grad_temperature.to(temperature.dtype).view_as(temperature)


def _prepared(features: Tensor, momentum: Tensor, bank: Tensor, *others: Tensor) -> list[Tensor]:
    """All contiguous, the first three in one dtype: a queue is float32 beside bf16 features."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, momentum.dtype), bank.dtype)
    return [
        *(t.to(dtype).contiguous() for t in (features, momentum, bank)),
        *(t.contiguous() for t in others),
    ]


def _precision() -> str:
    """Whether fp32 may go through TF32 is torch's own setting, which its matrix products follow."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
