"""The choice of the next token: penalties, sampling and one step of beam search.

Nothing here waits for the device. Randomness comes in as numbers, so that a sequence draws the
same tokens whatever its neighbours are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blip_fast.kernels._ops import REFERENCE, TRITON, Room, register_fake, register_triton
from blip_fast.kernels.sample import reference

_room = Room("sample", native=(torch.float32,), triton=(torch.float32,))


def penalise(
    scores: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    repetition_penalty: float,
    min_length: int,
    end_id: int,
) -> Tensor:
    """Repetition penalty and minimum length, as transformers' logits processors apply them.

    Args:
        scores: [B, V] float32, logits or log-probabilities.
        tokens: [B, P] int64, what each sequence holds so far, its prompt included.
        lengths: [B] int64, how many of them count, at least 1.
        repetition_penalty: a token already there has its score divided by it where positive,
            multiplied where negative (Keskar et al., arXiv 1909.05858). 1 changes nothing.
        min_length: a sequence shorter than this, in tokens, may not end.
        end_id: the token that ends a sequence.

    Returns:
        [B, V] float32; -inf where a token is forbidden. `scores` itself where nothing is asked.
    """
    arguments = (scores, tokens, lengths, repetition_penalty, min_length, end_id)
    if _room.choose(scores) != TRITON or (repetition_penalty == 1 and min_length <= 0):
        return reference.penalise(*arguments)
    changed: Tensor = _room.operator(TRITON, "penalise")(*arguments)
    return changed


def sample(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Draw one token a row from the top-k, then top-p part of the distribution.

    Tokens rank by logit, equal ones by their number. A row of -inf alone gives token 0. No
    gradient flows through.

    Args:
        logits: [B, V] float32, without NaN.
        uniform: [B] float32 in [0, 1): the random number of each row.
        temperature: divides the logits; above 0.
        top_k: how many of the likeliest tokens stay; 0 keeps all.
        top_p: the likeliest tokens stay until their probabilities sum to it (Holtzman et al.,
            arXiv 1904.09751); 1 keeps all.

    Returns:
        [B] int64.

    Raises:
        ValueError: where a setting is out of its range.
    """
    if not 0 < temperature < math.inf or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature {temperature} must be above 0 and finite, top_k {top_k} at least 0 and "
            f"top_p {top_p} in (0, 1]"
        )
    chosen = _room.choose(logits)
    if chosen == REFERENCE:
        return reference.sample(logits, uniform, temperature, top_k, top_p)
    logits, uniform = logits.detach().contiguous(), uniform.contiguous()
    tokens: Tensor = _room.operator(chosen)(logits, uniform, temperature, top_k, top_p)
    return tokens


def beam_step(log_probs: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each image's beams; no gradient flows through.

    Args:
        log_probs: [N * K, V] float32, of the next token of each of K beams of N images.
        scores: [N, K] float32, of the beams so far.
        keep: how many continuations to return; transformers keeps 2 K, so that K go on even
            where K of them end.

    Returns:
        scores, beams and tokens, each [N, keep], best first; a beam is 0..K-1 within its image.

    Raises:
        ValueError: where shapes do not fit.
    """
    images, beams = scores.shape
    if log_probs.shape[0] != images * beams or not 0 < keep <= beams * log_probs.shape[1]:
        raise ValueError(
            f"log_probs {tuple(log_probs.shape)} must have a row for each of the scores "
            f"{tuple(scores.shape)}, and their continuations be at least the {keep} to keep"
        )
    chosen = _room.choose(log_probs)
    log_probs, scores = log_probs.detach().contiguous(), scores.detach().contiguous()
    if chosen == REFERENCE:
        return reference.beam_step(log_probs, scores, keep)
    best, beam, token = _room.operator(chosen, "beam_step")(log_probs, scores, keep)
    return best, beam, token


def _fake_sample(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _fake_beam_step(log_probs: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    best = scores.new_empty(scores.shape[0], keep)
    beam, token = (torch.empty_like(best, dtype=torch.int64) for _ in range(2))
    return best, beam, token


def _fake_penalise(
    scores: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    repetition_penalty: float,
    min_length: int,
    end_id: int,
) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


register_triton("sample", "sample", "beam_step", "penalise")
register_fake("penalise", _fake_penalise)
register_fake("sample", _fake_sample)
register_fake("beam_step", _fake_beam_step)
