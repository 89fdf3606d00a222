"""The choice of the next token for GPUs: a whole batch in a few launches, nothing asks the host.

The best of a row are found in stages. Each part of the vocabulary is ranked by a program of its
own, which keeps as many as may be asked for; others rank what the parts kept. A score and its place
travel as one integer, whose order is that of the rule: the larger score first, of equals the one
that stands first. Sums of probabilities are fp64 and run in order of rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.sample import config

BELOW_ALL = tl.constexpr(-(2**63))
LOW_HALF = tl.constexpr(2**32 - 1)


@triton.jit
def _key(score, place):
    """int64 that ranks as (score, -place): the float's bits in order, then the place from the end.

    The bits of a float order as an integer once those of negative ones are turned over. NaN ranks
    behind all numbers; both zeros are one value.
    """
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where(score == score, order, -(2**31))
    return order.to(tl.int64) * (2**32) + (LOW_HALF - place.to(tl.int64))


@triton.jit
def part_kernel(
    score_ptr, beam_score_ptr, key_ptr, vocabulary,
    BEAMS: tl.constexpr, KEEP: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Program (row, part): the KEEP best of PART scores of a row, as keys, to key_ptr [row, part].

    With BEAMS beams an image, a beam's score is added, and a place counts through its beams.
    """
    row, part = tl.program_id(0), tl.program_id(1)
    token = part * PART + tl.arange(0, PART)
    inside = token < vocabulary
    score = tl.load(score_ptr + row.to(tl.int64) * vocabulary + token, mask=inside, other=0.0)
    if BEAMS > 0:
        score += tl.load(beam_score_ptr + row)
        token += row % BEAMS * vocabulary
    best = tl.topk(tl.where(inside, _key(score, token), BELOW_ALL), KEEP)
    place = (row.to(tl.int64) * tl.num_programs(1) + part) * KEEP
    tl.store(key_ptr + place + tl.arange(0, KEEP), best)


@triton.jit
def merge_kernel(key_ptr, out_ptr, number, KEEP: tl.constexpr, MERGED: tl.constexpr):
    """Program (row, group): the KEEP best of MERGED of a row's `number` keys, the best first."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = group * MERGED + tl.arange(0, MERGED)
    keys = tl.load(key_ptr + row * number + place, mask=place < number, other=BELOW_ALL)
    out_ptr += (row * tl.num_programs(1) + group) * KEEP
    tl.store(out_ptr + tl.arange(0, KEEP), tl.topk(keys, KEEP))


@triton.jit
def _weights(
    logit_ptr, key_ptr, most, temperature, first, number, SORTED: tl.constexpr, TILE: tl.constexpr
):
    """exp((logit - most) / temperature) of TILE ranks from `first`, fp64, 0 behind `number`."""
    rank = first + tl.arange(0, TILE)
    inside = rank < number
    place = rank
    if not SORTED:
        place = LOW_HALF - (tl.load(key_ptr + rank, mask=inside, other=0) & LOW_HALF)
    logit = tl.load(logit_ptr + place, mask=inside, other=float("-inf"))
    return tl.where(inside, tl.exp((logit.to(tl.float64) - most) / temperature), 0.0)


@triton.jit
def draw_kernel(
    logit_ptr, key_ptr, uniform_ptr, out_ptr, vocabulary, stride, number,
    temperature: tl.float64, top_p: tl.float64, SORTED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program: the token drawn from the `number` likeliest of a row.

    SORTED: logits stand in order of rank and keys are their tokens; else logits stand in order of
    token, and keys are those of `_key`, in order of rank.

    Through the ranks three times, the last two no further than need be: for the sum of all
    weights, for the first sum to reach `top_p` of it, and for the first to pass `uniform` of that.
    """
    row = tl.program_id(0).to(tl.int64)
    logit_ptr += row * vocabulary
    key_ptr += row * stride
    first_place = 0
    if not SORTED:
        first_place = LOW_HALF - (tl.load(key_ptr) & LOW_HALF)
    most = tl.load(logit_ptr + first_place).to(tl.float64)

    total = most * 0
    for first in range(0, number, TILE):
        weights = _weights(logit_ptr, key_ptr, most, temperature, first, number, SORTED, TILE)
        total += tl.sum(weights, axis=0)

    kept = total
    if top_p < 1:
        share, reached, first, going = top_p * total, most * 0, 0, True
        while going:
            weights = _weights(logit_ptr, key_ptr, most, temperature, first, number, SORTED, TILE)
            sums = reached + tl.cumsum(weights, axis=0)
            # Sums do not fall, so the first to reach the share is the least that does.
            kept = tl.min(tl.where(sums >= share, sums, float("inf")), axis=0)
            reached = tl.max(sums, axis=0)
            first += TILE
            going = (kept == float("inf")) & (first < number)
        kept = tl.minimum(kept, reached)

    threshold = tl.load(uniform_ptr + row).to(tl.float64) * kept
    rank, reached, first, going = 0, most * 0, 0, True
    while going:
        weights = _weights(logit_ptr, key_ptr, most, temperature, first, number, SORTED, TILE)
        sums = reached + tl.cumsum(weights, axis=0)
        rank += tl.sum((sums <= threshold).to(tl.int32), axis=0)
        reached = tl.max(sums, axis=0)
        first += TILE
        going = (rank == first) & (first < number)
    # Without numbers that compare, as where all logits are -inf or NaN, the first.
    rank = tl.where(rank < number, rank, 0)
    token = tl.load(key_ptr + rank)
    if not SORTED:
        token = LOW_HALF - (token & LOW_HALF)
    tl.store(out_ptr + row, token)


@triton.jit
def beam_kernel(
    key_ptr, log_prob_ptr, beam_score_ptr, best_ptr, beam_ptr, token_ptr, vocabulary, beams, keep,
    KEEP: tl.constexpr,
):  # fmt: skip
    """One program: score, beam and token of an image's first `keep` keys of [KEEP]."""
    image = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, KEEP)
    inside = rank < keep
    key = tl.load(key_ptr + image * KEEP + rank, mask=inside, other=LOW_HALF)
    place = LOW_HALF - (key & LOW_HALF)
    beam, token = place // vocabulary, place % vocabulary
    row = image * beams + beam
    score = tl.load(log_prob_ptr + row * vocabulary + token, mask=inside, other=0.0)
    score += tl.load(beam_score_ptr + row, mask=inside, other=0.0)
    out = image * keep + rank
    tl.store(best_ptr + out, score, mask=inside)
    tl.store(beam_ptr + out, beam, mask=inside)
    tl.store(token_ptr + out, token, mask=inside)


@triton.jit
def penalise_kernel(
    score_ptr, token_ptr, length_ptr, out_ptr, vocabulary, positions, penalty, min_length, end_id,
    PENALTY: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """One program: a row's held tokens, and its end where it may not end; out is a copy before."""
    row = tl.program_id(0).to(tl.int64)
    score_ptr += row * vocabulary
    out_ptr += row * vocabulary
    length = tl.load(length_ptr + row)
    too_short = length < min_length
    if PENALTY:
        for first in range(0, positions, HELD):
            place = first + tl.arange(0, HELD)
            inside = (place < length) & (place < positions)
            token = tl.load(token_ptr + row * positions + place, mask=inside, other=0)
            score = tl.load(score_ptr + token, mask=inside, other=0.0)
            # Of a token that is held twice, both lanes write the same.
            changed = tl.where(score < 0, score * penalty, tl.div_rn(score, penalty))
            changed = tl.where(too_short & (token == end_id), float("-inf"), changed)
            tl.store(out_ptr + token, changed, mask=inside)
    if too_short:
        tl.store(out_ptr + end_id, float("-inf"))


def penalise(
    scores: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    repetition_penalty: float,
    min_length: int,
    end_id: int,
) -> Tensor:
    """The operator: [B, V] to the same with penalties, a copy always."""
    scores, tokens, lengths = (t.contiguous() for t in (scores, tokens, lengths))
    changed = scores.clone()
    if len(scores):
        penalise_kernel[(len(scores),)](
            scores, tokens, lengths, changed, scores.shape[1], tokens.shape[1],
            repetition_penalty, min_length, end_id, PENALTY=repetition_penalty != 1, **config.HELD,
        )  # fmt: skip
    return changed


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The operator: [B, V] to a token a row."""
    rows, vocabulary = logits.shape
    tokens = logits.new_empty(rows, dtype=torch.int64)
    if not rows:
        return tokens
    number = min(top_k or vocabulary, vocabulary)
    by_torch = number > config.MOST or number == vocabulary
    if by_torch:
        ranked, keys = logits.sort(dim=1, descending=True, stable=True)
    else:
        ranked, keys = logits, _best(logits, None, 1, number)
    draw_kernel[(rows,)](
        ranked, keys, uniform, tokens, vocabulary, keys.shape[1], number, temperature, top_p,
        SORTED=by_torch, **config.DRAW,
    )  # fmt: skip
    return tokens


def beam_step(log_probs: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: [N * K, V] and [N, K] to scores, beams and tokens, [N, keep]."""
    (images, beams), vocabulary = scores.shape, log_probs.shape[1]
    best = scores.new_empty(images, keep)
    beam, token = (torch.empty_like(best, dtype=torch.int64) for _ in range(2))
    if images:
        keys = _best(log_probs, scores, beams, keep)
        beam_kernel[(images,)](
            keys, log_probs, scores, best, beam, token, vocabulary, beams, keep,
            KEEP=keys.shape[1],
        )  # fmt: skip
    return best, beam, token


def _best(scores: Tensor, beam_scores: Tensor | None, beams: int, number: int) -> Tensor:
    """Keys of the `number` best of the rows, or of `beams` rows each, in order of rank.

    [rows / beams, a power of 2 not below `number`] int64.
    """
    rows, vocabulary = scores.shape
    # At least 2: of one element, Triton's rankings have no axis left.
    keep = triton.next_power_of_2(max(number, 2))
    part = min(config.PART, triton.next_power_of_2(max(vocabulary, 2)))
    parts, kept = triton.cdiv(vocabulary, part), min(keep, part)
    keys = scores.new_empty(rows // beams, beams * parts * kept, dtype=torch.int64)
    part_kernel[(rows, parts)](
        scores, scores if beam_scores is None else beam_scores, keys, vocabulary,
        BEAMS=0 if beam_scores is None else beams, KEEP=kept, PART=part,
        num_warps=config.PART_WARPS,
    )  # fmt: skip
    lists = beams * parts  # each of them in order
    while lists > 1:
        merged = min(max(config.MERGED, 2 * keep), triton.next_power_of_2(keys.shape[1]))
        lists = triton.cdiv(keys.shape[1], merged)
        before, keys = keys, keys.new_empty(len(keys), lists * keep)
        merge_kernel[(len(keys), lists)](
            before, keys, before.shape[1], KEEP=keep, MERGED=merged, num_warps=config.MERGE_WARPS
        )
    return keys
