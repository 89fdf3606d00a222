"""The choice of tokens: greedy, sampled, or by beams.

A search holds the texts written so far, as rows of tokens; the engine holds the keys and values.
Between them go the scores of the next token, one way, and the chosen tokens and their parents,
the other. Rows of one prompt stand together: row n * R + r is text r of prompt n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blip_fast import kernels
from blip_fast.decoding.options import SearchOptions
from blip_fast.text import PackedText

# Finished or impossible beams lose against all others but stay comparable, as in transformers.
_OUT = -1.0e9


@dataclass(frozen=True)
class Written:
    """One text as tokens: prompt included, [SEP] last where it ended by itself.

    `token_log_probabilities` are the model's own, without penalties or temperature, one for each
    token after the prompt.
    """

    token_ids: list[int]
    prompt_length: int
    token_log_probabilities: list[float]

    @property
    def log_probability(self) -> float:
        return sum(self.token_log_probabilities)


def prompt_table(prompts: PackedText, width: int) -> Tensor:
    """Prompts as rows [N, width] int64, 0 behind their ends."""
    place = torch.arange(width, device=prompts.device)
    table = prompts.ids.new_zeros(len(prompts), width)
    table[place < prompts.lengths[:, None]] = prompts.ids
    return table


class IndependentSearch:
    """Rows that know nothing of each other: one greedy text a prompt, or several samples.

    Args:
        uniform: [N * R, max_length], the random numbers of each row; none when greedy.
    """

    def __init__(
        self, prompts: PackedText, options: SearchOptions, end_id: int, uniform: Tensor | None
    ) -> None:
        rows = options.num_texts if options.samples else 1
        self.options, self.end_id, self.uniform = options, end_id, uniform
        self.tokens = prompt_table(prompts, options.max_length).repeat_interleave(rows, 0)
        self.prompt_lengths = prompts.lengths.repeat_interleave(rows)
        self.lengths = self.prompt_lengths.clone()
        self.log_probs = torch.zeros(self.tokens.shape, device=prompts.device)
        self.live = self.lengths < options.max_length

    def step(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write one token a row.

        Args:
            logits: [N * R, V] float32.

        Returns:
            the tokens [N * R], their positions [N * R], and no parents: each row follows itself.
        """
        options = self.options
        scores = kernels.penalise(
            logits, self.tokens, self.lengths, options.penalty, options.min_length, self.end_id
        )
        if self.uniform is None:
            chosen = scores.argmax(1)
        else:
            # A row's numbers are used in order of its own tokens, whatever its neighbours do.
            number = self.uniform.gather(1, (self.lengths - self.prompt_lengths)[:, None])[:, 0]
            chosen = kernels.sample(
                scores, number, options.temperature, options.top_k, options.top_p or 1.0
            )
        log_prob = logits.log_softmax(1).gather(1, chosen[:, None])[:, 0]
        position = self.lengths.clamp(max=options.max_length - 1)
        at = (torch.arange(len(chosen), device=chosen.device), position)
        self.tokens[at] = torch.where(self.live, chosen, self.tokens[at])
        self.log_probs[at] = torch.where(self.live, log_prob, self.log_probs[at])
        self.lengths = self.lengths + self.live
        self.live = self.live & (chosen != self.end_id) & (self.lengths < options.max_length)
        return chosen, position, None

    @property
    def done(self) -> Tensor:
        return ~self.live.any()

    def results(self) -> list[list[Written]]:
        texts = _written(self.tokens, self.log_probs, self.lengths, self.prompt_lengths)
        rows = self.options.rows if self.options.samples else 1
        return [texts[i : i + rows] for i in range(0, len(texts), rows)]


class BeamSearch:
    """Beam search with the rules of transformers' `_beam_search`, `early_stopping=False`.

    Each prompt ends by its own rules, so its result is that of a batch of one.
    """

    def __init__(self, prompts: PackedText, options: SearchOptions, end_id: int) -> None:
        n, k, device = len(prompts), options.num_beams, prompts.device
        self.options, self.end_id = options, end_id
        self.prompt_lengths = prompts.lengths
        self.length = prompts.lengths.clone()  # [N]: the live beams of a prompt are equally long
        self.done_rows = self.length >= options.max_length
        self.improvable = ~self.done_rows

        table = prompt_table(prompts, options.max_length)
        self.tokens = table[:, None].repeat(1, k, 1)  # [N, K, P]
        self.log_probs = torch.zeros(self.tokens.shape, device=device)
        # All beams begin alike; only the first may propose, or all would propose the same.
        self.scores = torch.full((n, k), _OUT, device=device)
        self.scores[:, 0] = 0

        self.ended_tokens = self.tokens.clone()
        self.ended_log_probs = self.log_probs.clone()
        self.ended_lengths = self.length[:, None].repeat(1, k)
        self.ended_scores = torch.full((n, k), _OUT, device=device)
        self.ended = torch.zeros(n, k, dtype=torch.bool, device=device)

    def step(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write one token a beam.

        Args:
            logits: [N * K, V] float32.

        Returns:
            the tokens [N * K], their positions [N * K], and the row that each beam continues.
        """
        options, (n, k, width) = self.options, self.tokens.shape
        log_probs = logits.log_softmax(1)
        lengths = self.length.repeat_interleave(k)
        scores = kernels.penalise(
            log_probs, self.tokens.view(n * k, width), lengths, options.penalty,
            options.min_length, self.end_id,
        )  # fmt: skip
        best, beam, token = kernels.beam_step(scores, self.scores, keep=2 * k)

        position = self.length.clamp(max=width - 1)
        first_row = torch.arange(n, device=beam.device)[:, None] * k
        candidates = _follow(self.tokens, beam, position, token)
        candidate_log_probs = _follow(
            self.log_probs, beam, position, log_probs[first_row + beam, token]
        )
        length = self.length + 1
        ends = (token == self.end_id) | (length >= options.max_length)[:, None]

        self._collect(candidates, candidate_log_probs, best, ends, length)

        live_scores, going_on = (best + ends * _OUT).topk(k)
        live = ~self.done_rows
        self.scores = torch.where(live[:, None], live_scores, self.scores)
        self.tokens = _select(candidates, going_on)
        self.log_probs = _select(candidate_log_probs, going_on)
        self.length = torch.where(live, length, self.length)
        self._close(length)
        parents = (first_row + beam.gather(1, going_on)).view(-1)
        return token.gather(1, going_on).view(-1), position.repeat_interleave(k), parents

    def _collect(
        self, candidates: Tensor, log_probs: Tensor, best: Tensor, ends: Tensor, length: Tensor
    ) -> None:
        """Keep the best K of the texts that ended before and those that end now."""
        k = self.options.num_beams
        in_front = torch.arange(2 * k, device=ends.device) < k
        ends = ends & in_front  # what ranks behind the K best is no result
        written = (length - self.prompt_lengths)[:, None].float()
        scores = best / written**self.options.length_penalty
        scores = scores.masked_fill(~ends, _OUT)

        merged = torch.cat([self.ended_scores, scores], dim=1)
        kept_scores, kept = merged.topk(k)
        lengths = torch.cat([self.ended_lengths, length[:, None].expand_as(scores)], dim=1)
        now = {
            "ended_tokens": _select(torch.cat([self.ended_tokens, candidates], dim=1), kept),
            "ended_log_probs": _select(torch.cat([self.ended_log_probs, log_probs], dim=1), kept),
            "ended_lengths": lengths.gather(1, kept),
            "ended_scores": kept_scores,
            "ended": torch.cat([self.ended, ends], dim=1).gather(1, kept),
        }
        for name, value in now.items():
            before = getattr(self, name)
            open_ = self.improvable.view(-1, *[1] * (value.ndim - 1))
            setattr(self, name, torch.where(open_, value, before))

    def _close(self, length: Tensor) -> None:
        """Stop where no live beam can beat the worst of K ended texts, or at the last length."""
        written = (length - self.prompt_lengths).float()
        possible = self.scores[:, 0] / written**self.options.length_penalty
        worst = self.ended_scores.amin(1)
        beatable = ~self.ended.all(1) | (possible > worst)
        self.improvable = self.improvable & beatable & (length < self.options.max_length)
        self.done_rows = ~self.improvable

    @property
    def done(self) -> Tensor:
        return self.done_rows.all()

    def results(self) -> list[list[Written]]:
        n, k, width = self.tokens.shape
        texts = _written(
            self.ended_tokens.view(n * k, width),
            self.ended_log_probs.view(n * k, width),
            self.ended_lengths.view(-1),
            self.prompt_lengths.repeat_interleave(k),
        )
        return [texts[i : i + self.options.num_texts] for i in range(0, n * k, k)]


def _follow(table: Tensor, beam: Tensor, position: Tensor, value: Tensor) -> Tensor:
    """Rows `beam` [N, C] of a table [N, K, P], with `value` [N, C] written at `position` [N]."""
    rows = _select(table, beam)
    place = position[:, None, None].expand(*beam.shape, 1)
    return rows.scatter(2, place, value[:, :, None])


def _select(table: Tensor, rows: Tensor) -> Tensor:
    """Rows [N, C] of a table [N, K, P]."""
    return table.gather(1, rows[:, :, None].expand(*rows.shape, table.shape[2]))


def _written(tokens: Tensor, log_probs: Tensor, lengths: Tensor, prompts: Tensor) -> list[Written]:
    """Rows of tables to texts on the host."""
    rows = zip(tokens.tolist(), log_probs.tolist(), lengths.tolist(), prompts.tolist(), strict=True)
    return [Written(ids[:end], start, logs[start:end]) for ids, logs, end, start in rows]
