"""Answers by ranking: which of many candidates does the decoder find likeliest?

As BLIP's `rank_answer`: the first token narrows the candidates to k, those are scored whole, by
the same label-smoothed loss that the decoder was trained with. Candidates that begin alike share
their beginning: it is run once for a question, level by level, and the vocabulary is summed over
once for each beginning, whatever follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_fast.med.blip import MED
from blip_fast.med.context import SelfCache, StepMemory, StepPast
from blip_fast.med.inference import inference
from blip_fast.med.memory import QuestionMemory

_TRAINING_LABEL_SMOOTHING = 0.1

# Rows run at once: enough to fill a matrix unit; a row's keys and values take 36 KiB a position in
# a base model's bf16.
_ROWS_PER_CALL = 512

_NONE = -1


@dataclass(frozen=True)
class Ranked:
    """The best candidate of a question, its score, and the log-probability of each token."""

    candidate: int
    score: float
    token_log_probabilities: list[float]


@dataclass(frozen=True)
class Candidates:
    """Answers to choose from, as a trie; on the host.

    Attributes:
        sequences: token ids, each beginning with [DEC] and ending with [SEP].
        tokens: [C, L] int64, the same, 0 behind their ends.
        nodes: [C, L - 1] int64: candidates have the same number in column p where their first
            p + 1 tokens are the same; -1 where fewer than p + 2 tokens are left.
    """

    sequences: Sequence[Sequence[int]]
    tokens: Tensor
    nodes: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Candidates:
        """Raises a ValueError where a sequence has no token behind its first."""
        if short := [i for i, ids in enumerate(sequences) if len(ids) < 2]:
            raise ValueError(f"candidate {short[0]} is {sequences[short[0]]}; it needs two tokens")
        length = max(len(ids) for ids in sequences)
        tokens = torch.zeros(len(sequences), length, dtype=torch.int64)
        nodes = torch.full((len(sequences), length - 1), _NONE)
        numbers: dict[tuple[int, ...], int] = {}
        for row, ids in enumerate(sequences):
            tokens[row, : len(ids)] = torch.tensor(ids)
            starts = [tuple(ids[:end]) for end in range(1, len(ids))]
            found = [numbers.setdefault(start, len(numbers)) for start in starts]
            nodes[row, : len(found)] = torch.tensor(found)
        return cls(sequences, tokens, nodes)

    def __len__(self) -> int:
        return len(self.sequences)


def rank_candidates(
    model: MED, memory: QuestionMemory, candidates: Candidates, k: int
) -> list[Ranked]:
    """The best candidate for each question.

    Args:
        k: how many of them the first token lets through; ties go to the earlier candidate.
    """
    k = min(k, len(candidates))
    together = max(1, _ROWS_PER_CALL // k)
    ranked: list[Ranked] = []
    with inference(model.device):
        for begin in range(0, len(memory), together):
            questions = torch.arange(begin, min(begin + together, len(memory)))
            ranked += _Forest(model, memory, candidates, k, questions).best()
    return ranked


class _Forest:
    """The beginnings of the shortlists of some questions, and the decoder's states of them.

    A level holds the beginnings of one length; `rows` says which of them is that of a question's
    candidate, `states` has all levels one after the other.
    """

    def __init__(
        self,
        model: MED,
        memory: QuestionMemory,
        candidates: Candidates,
        k: int,
        questions: Tensor,
    ) -> None:
        self._model, self._memory, self._questions = model, memory, questions.to(model.device)
        self._tokens = candidates.tokens.to(model.device)
        self._nodes = candidates.nodes.to(model.device)
        n, depth = len(questions), self._nodes.shape[1]
        self._cache = SelfCache.empty(model.config.text, n * k, depth, model.dtype, model.device)
        own = torch.arange(n, device=model.device)
        ancestors = own[:, None].repeat(1, depth)
        self._states = [self._run(0, self._tokens[:1, 0].expand(n), own, ancestors)]
        self._shortlist = self._narrow(k)  # [n, k]
        rows = own[:, None].expand(n, k)
        self._rows = [rows]
        for level in range(1, depth):
            rows, ancestors = self._grow(level, rows, ancestors)
            self._rows.append(rows)

    def _narrow(self, k: int) -> Tensor:
        """[n, k]: the candidates whose first token is likeliest."""
        first, which = self._tokens[:, 1].unique(return_inverse=True)
        logits = self._model.next_logits_of(self._states[0], first)[:, which]
        return logits.sort(dim=1, descending=True, stable=True).indices[:, :k]

    def _grow(self, level: int, before: Tensor, ancestors: Tensor) -> tuple[Tensor, Tensor]:
        """Run the beginnings of `level` + 1 tokens.

        Args:
            before: [n, k], the rows of the level before; -1 where a candidate has none.
            ancestors: [M, P] of that level.

        Returns:
            the same two of this level.
        """
        nodes = self._nodes[self._shortlist, level]
        alive = (nodes != _NONE).nonzero(as_tuple=True)
        keys = alive[0] * (self._nodes.max() + 1) + nodes[alive]
        distinct, row = keys.unique(return_inverse=True)
        rows = torch.full_like(before, _NONE).index_put(alive, row)
        # Any candidate of a row stands for all: they begin alike.
        one = torch.zeros_like(distinct).scatter(0, row, torch.arange(len(row), device=row.device))
        question, place = alive[0][one], alive[1][one]
        tokens = self._tokens[self._shortlist[question, place], level]
        ancestors = ancestors[before[question, place]]
        ancestors[:, level] = torch.arange(len(distinct), device=row.device)
        self._states.append(self._run(level, tokens, question, ancestors))
        return rows, ancestors

    def _run(self, level: int, tokens: Tensor, question: Tensor, ancestors: Tensor) -> Tensor:
        """States [M, W] of tokens [M] at position `level`."""
        rows = torch.arange(len(tokens), device=tokens.device)
        positions = torch.full_like(rows, level)
        past = StepPast(self._cache, rows, ancestors, positions, positions + 1)
        index = self._questions[question]
        grounding = StepMemory(self._memory.pairs, index, self._memory.key_lengths)
        return self._model.write(tokens, positions, past, grounding)

    def best(self) -> list[Ranked]:
        n, k = self._shortlist.shape
        states = torch.cat(self._states)
        begins, owners, targets, texts = 0, [], [], []
        for level, (rows, made) in enumerate(zip(self._rows, self._states, strict=True)):
            question, place = (rows != _NONE).nonzero(as_tuple=True)
            owners.append(begins + rows[question, place])
            targets.append(self._tokens[self._shortlist[question, place], level + 1])
            texts.append(question * k + place)
            begins += len(made)
        owner, target, text = torch.cat(owners), torch.cat(targets), torch.cat(texts)
        losses = self._model.losses_of(states, owner, target, _TRAINING_LABEL_SMOOTHING)
        scores = -losses.new_zeros(n * k).index_add(0, text, losses).view(n, k)
        score, place = scores.max(1)
        winners = torch.arange(n, device=place.device) * k + place

        # The winners' own log-probabilities, without label smoothing, level by level.
        of_winner = torch.isin(text, winners).nonzero()[:, 0]
        plain = self._model.losses_of(
            states[owner[of_winner]], torch.arange(len(of_winner), device=text.device),
            target[of_winner],
        )  # fmt: skip
        logs: list[list[float]] = [[] for _ in range(n)]
        questions = (text[of_winner] // k).tolist()
        for question, loss in zip(questions, plain.tolist(), strict=True):
            logs[question].append(-loss)
        chosen = self._shortlist.gather(1, place[:, None])[:, 0].tolist()
        return [Ranked(*row) for row in zip(chosen, score.tolist(), logs, strict=True)]
