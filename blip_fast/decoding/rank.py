"""Answers by ranking: which of many candidates does the decoder find likeliest?

As BLIP's `rank_answer`: the first token narrows the candidates to k, those are scored whole, by
the same label-smoothed loss that the decoder was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_fast.decoding.pairs import over_pairs
from blip_fast.med.blip import MED
from blip_fast.med.context import PackedMemory, PackedPast
from blip_fast.med.memory import QuestionMemory
from blip_fast.text import PackedText, pack

_TRAINING_LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Ranked:
    """The best candidate of a question, its score, and the log-probability of each token."""

    candidate: int
    score: float
    token_log_probabilities: list[float]


def rank_candidates(
    model: MED, memory: QuestionMemory, candidates: Sequence[Sequence[int]], k: int
) -> list[Ranked]:
    """The best candidate for each question.

    Args:
        candidates: token ids, each beginning with [DEC] and ending with [SEP].
        k: how many of them the first token lets through; ties go to the earlier candidate.
    """
    with torch.inference_mode():
        shortlist = _shortlist(model, memory, candidates, min(k, len(candidates)))
        n, kept = shortlist.shape
        questions = torch.arange(n).repeat_interleave(kept)

        def summed_loss(text: PackedText, rows: Tensor) -> Tensor:
            text, rows = text.to(model.device), rows.to(model.device)
            losses = model.losses(text, memory, rows, _TRAINING_LABEL_SMOOTHING)
            owner = torch.arange(len(text), device=model.device).repeat_interleave(text.lengths)
            return losses.new_zeros(len(text)).index_add_(0, owner, losses)

        losses = over_pairs(summed_loss, candidates, questions, shortlist.reshape(-1))
        scores = -losses.view(n, kept)
        best = scores.argmax(1, keepdim=True)
        winners = shortlist.gather(1, best.cpu())[:, 0].tolist()
        logs = _token_log_probabilities(model, memory, [candidates[w] for w in winners])
        top = scores.gather(1, best)[:, 0].tolist()
        return [Ranked(*row) for row in zip(winners, top, logs, strict=True)]


def _shortlist(
    model: MED, memory: QuestionMemory, candidates: Sequence[Sequence[int]], k: int
) -> Tensor:
    """[N, k] int64 on the host: the candidates whose first token is likeliest."""
    starts = pack([[model.config.text.dec_id]] * len(memory)).to(model.device)
    everyone = torch.arange(len(memory), device=model.device)
    grounding = PackedMemory(memory.pairs, everyone, starts.offsets, memory.key_lengths)
    past = PackedPast(starts, causal=True)
    logits = model.next_logits(model.write(starts.ids, starts.positions, past, grounding))
    first = torch.tensor([c[1] for c in candidates], device=model.device)
    ranked = logits.log_softmax(1)[:, first].sort(dim=1, descending=True, stable=True)
    return ranked.indices[:, :k].cpu()


def _token_log_probabilities(
    model: MED, memory: QuestionMemory, winners: Sequence[Sequence[int]]
) -> list[list[float]]:
    text = pack(winners).to(model.device)
    everyone = torch.arange(len(winners), device=model.device)
    losses = model.losses(text, memory, everyone).split(text.lengths.tolist())
    return [(-part[1:]).tolist() for part in losses]
