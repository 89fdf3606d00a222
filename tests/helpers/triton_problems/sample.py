"""How tokens are chosen: samples among few and all, beams, penalties; scores are float32 always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.sample import config, triton

MATRIX: set[str] = set()


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    logits, uniform = torch.zeros(6, 30524), torch.zeros(6)
    for top_k in (1, 50, config.MOST, 0):
        yield partial(triton.sample, logits, uniform, 0.7, top_k, 0.9)
    for beams in (1, 3, 6):
        scores = torch.zeros(6 // beams, beams)
        yield partial(triton.beam_step, logits, scores, 2 * beams)
    held, lengths = torch.zeros(6, 20).long(), torch.zeros(6).long()
    for penalty in (1.0, 1.1):
        yield partial(triton.penalise, logits, held, lengths, penalty, 5, 102)


def smallest(dtype: torch.dtype) -> None:
    logits, one = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int64)
    triton.sample(logits, logits[0], 0.7, 1, 0.9)
    triton.beam_step(logits, logits, 1)
    triton.penalise(logits, one, one[0], 1.1, 1, 0)
