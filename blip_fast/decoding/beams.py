"""Beam search: the K likeliest beginnings of each text go on, and the best K ended ones stay.

A beam that continues another says so by its parent; no key or value moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast import kernels
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.search import Written, prompt_table, rows_of, written
from blip_fast.decoding.steer import Steering
from blip_fast.text import PackedText

# Finished or impossible beams lose against all others but stay comparable, as in transformers.
_OUT = -1.0e9


class BeamSearch:
    """Beam search with the rules of transformers' `_beam_search`.

    Each prompt ends by its own rules, so its result is that of a batch of one.
    """

    def __init__(
        self, options: SearchOptions, end_id: int, slots: int, device: torch.device
    ) -> None:
        self.options, self.end_id = options, end_id
        self.steer = Steering(options, end_id, device)
        k, width = options.num_beams, options.max_length
        self.prompt_lengths = torch.ones(slots, dtype=torch.int64, device=device)
        self.length = self.prompt_lengths.clone()  # the live beams of a prompt are equally long
        self.open = torch.zeros(slots, dtype=torch.bool, device=device)  # slots that go on

        self.tokens = torch.zeros(slots, k, width, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(slots, k, width, dtype=torch.float32, device=device)
        self.scores = torch.full((slots, k), _OUT, dtype=torch.float32, device=device)

        self.ended_tokens = self.tokens.clone()
        self.ended_log_probs = self.log_probs.clone()
        self.ended_lengths = self.length[:, None].repeat(1, k)
        self.ended_scores = self.scores.clone()
        self.ended = torch.zeros(slots, k, dtype=torch.bool, device=device)

    @property
    def live(self) -> Tensor:
        return self.open.repeat_interleave(self.options.num_beams)

    def admit(self, slots: Tensor, prompts: PackedText, seeds: Sequence[int]) -> None:
        table = prompt_table(prompts, self.options.max_length)[:, None]
        self.prompt_lengths[slots] = self.length[slots] = prompts.lengths
        self.open[slots] = True
        self.tokens[slots] = self.ended_tokens[slots] = table.expand_as(self.tokens[slots])
        self.log_probs[slots] = self.ended_log_probs[slots] = 0.0
        # All beams begin alike; only the first may propose, or all would propose the same.
        self.scores[slots] = self.ended_scores[slots] = _OUT
        self.scores[slots, 0] = 0.0
        self.ended_lengths[slots] = prompts.lengths[:, None].expand_as(self.ended_lengths[slots])
        self.ended[slots] = False

    def step(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        k, width = self.tokens.shape[1:]
        slots = rows.view(-1, k)[:, 0] // k
        tokens, length, live = self.tokens[slots], self.length[slots], self.open[slots]
        log_probs = logits.log_softmax(1)
        scores = self.steer(log_probs, tokens.view(-1, width), length.repeat_interleave(k))
        best, beam, token = kernels.beam_step(scores, self.scores[slots], keep=2 * k)

        position = length.clamp(max=width - 1)
        first = torch.arange(len(slots), device=beam.device)[:, None] * k
        candidates = _follow(tokens, beam, position, token)
        candidate_log_probs = _follow(
            self.log_probs[slots], beam, position, log_probs[first + beam, token]
        )
        length = length + 1
        ends = (token == self.end_id) | (length >= width)[:, None]

        self._collect(slots, candidates, candidate_log_probs, best, ends, length)

        live_scores, going_on = (best + ends.to(best.dtype) * _OUT).topk(k)
        self.scores[slots] = live_scores
        self.tokens[slots] = _select(candidates, going_on)
        self.log_probs[slots] = _select(candidate_log_probs, going_on)
        self.length[slots] = torch.where(live, length, self.length[slots])
        self._close(slots, live_scores, length)
        parents = (slots[:, None] * k + beam.gather(1, going_on)).view(-1)
        return token.gather(1, going_on).view(-1), position.repeat_interleave(k), parents

    def _collect(
        self,
        slots: Tensor,
        candidates: Tensor,
        log_probs: Tensor,
        best: Tensor,
        ends: Tensor,
        length: Tensor,
    ) -> None:
        """Keep the best K of the texts that ended before and those that end now."""
        k = self.options.num_beams
        in_front = torch.arange(2 * k, device=ends.device) < k
        ends = ends & in_front  # what ranks behind the K best is no result
        new = (length - self.prompt_lengths[slots])[:, None].float()
        scores = best / new**self.options.length_penalty
        scores = scores.masked_fill(~ends, _OUT)

        merged = torch.cat([self.ended_scores[slots], scores], dim=1)
        kept_scores, kept = merged.topk(k)
        lengths = torch.cat([self.ended_lengths[slots], length[:, None].expand_as(scores)], dim=1)
        ended_tokens = torch.cat([self.ended_tokens[slots], candidates], dim=1)
        ended_log_probs = torch.cat([self.ended_log_probs[slots], log_probs], dim=1)
        for table, value in (
            (self.ended_tokens, _select(ended_tokens, kept)),
            (self.ended_log_probs, _select(ended_log_probs, kept)),
            (self.ended_lengths, lengths.gather(1, kept)),
            (self.ended_scores, kept_scores),
            (self.ended, torch.cat([self.ended[slots], ends], dim=1).gather(1, kept)),
        ):
            live = self.open[slots].view(-1, *[1] * (value.ndim - 1))
            table[slots] = torch.where(live, value, table[slots])

    def _close(self, slots: Tensor, live_scores: Tensor, length: Tensor) -> None:
        """Stop where no live beam can beat the worst of K ended texts, or at the last length."""
        options = self.options
        reach = length
        if options.early_stopping == "never" and options.length_penalty > 0:
            reach = torch.full_like(length, options.max_length)
        reach = (reach - self.prompt_lengths[slots]).float()
        possible = live_scores[:, 0] / reach**options.length_penalty
        all_ended = self.ended[slots].all(1)
        beatable = ~all_ended | (possible > self.ended_scores[slots].amin(1))
        if options.early_stopping is True:
            beatable = beatable & ~all_ended
        self.open[slots] &= beatable & (length < options.max_length)

    def results(self, slots: Tensor) -> list[list[Written]]:
        k, texts = self.options.num_beams, self.options.num_texts
        rows = rows_of(slots, k)
        found = written(
            self.ended_tokens.flatten(0, 1)[rows],
            self.ended_log_probs.flatten(0, 1)[rows],
            self.ended_lengths.view(-1)[rows],
            self.prompt_lengths.repeat_interleave(k)[rows],
        )
        return [found[i : i + texts] for i in range(0, len(found), k)]


def _follow(table: Tensor, beam: Tensor, position: Tensor, value: Tensor) -> Tensor:
    """Rows `beam` [N, C] of a table [N, K, P], with `value` [N, C] written at `position` [N]."""
    rows = _select(table, beam)
    place = position[:, None, None].expand(*beam.shape, 1)
    return rows.scatter(2, place, value[:, :, None])


def _select(table: Tensor, rows: Tensor) -> Tensor:
    """Rows [N, C] of a table [N, K, P]."""
    return table.gather(1, rows[:, :, None].expand(*rows.shape, table.shape[2]))
