"""The choice of tokens: greedy or sampled here, by beams in `beams.py`.

A search holds the texts written so far, as rows of tokens, in a fixed number of slots; the engine
holds the keys and values. Between them go the scores of the next token, one way, and the chosen
tokens and their parents, the other. Rows of a slot stand together: row s * R + r is text r of slot
s. A slot is free, or it has the texts of one prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blip_fast import kernels
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.steer import Steering
from blip_fast.text import PackedText


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
        """That of the whole text, given its prompt: a natural logarithm."""
        return sum(self.token_log_probabilities)


class Search(Protocol):
    """What the engine asks of a search. Every method leaves the shapes of its tables as they are,
    and none but `results` waits for the device."""

    @property
    def live(self) -> Tensor:
        """[slots * R] bool: rows that go on."""

    def admit(self, slots: Tensor, prompts: PackedText, seeds: Sequence[int]) -> None:
        """Begin with prompts in slots [n], over whatever was there."""

    def step(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write one token a row.

        Args:
            logits: [B, V] float32.
            rows: [B] int64, whole slots where rows are beams; those that are not live stay as
                they are.

        Returns:
            the tokens [B], their positions [B], and the row that each continues, itself if None.
        """

    def results(self, slots: Tensor) -> list[list[Written]]:
        """The texts of ended slots."""


def rows_of(slots: Tensor, rows: int) -> Tensor:
    """The rows [n * R] of slots [n]."""
    return (slots[:, None] * rows + torch.arange(rows, device=slots.device)).view(-1)


def prompt_table(prompts: PackedText, width: int) -> Tensor:
    """Prompts as rows [N, width] int64, 0 behind their ends."""
    place = torch.arange(width, device=prompts.device)
    table = prompts.ids.new_zeros(len(prompts), width)
    table[place < prompts.lengths[:, None]] = prompts.ids
    return table


class IndependentSearch:
    """Rows that know nothing of each other: one greedy text a prompt, or several samples."""

    def __init__(
        self, options: SearchOptions, end_id: int, slots: int, device: torch.device
    ) -> None:
        self.options, self.end_id = options, end_id
        self.steer = Steering(options, end_id, device)
        shape = (slots * options.rows, options.max_length)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(shape, dtype=torch.float32, device=device)
        self.lengths = torch.ones(shape[0], dtype=torch.int64, device=device)
        self.prompt_lengths = self.lengths.clone()
        self.live = torch.zeros(shape[0], dtype=torch.bool, device=device)
        # The random numbers of each row, in the order of its tokens.
        self.uniform = torch.zeros_like(self.log_probs) if options.samples else None

    def admit(self, slots: Tensor, prompts: PackedText, seeds: Sequence[int]) -> None:
        each = self.options.rows
        rows = rows_of(slots, each)
        table = prompt_table(prompts, self.options.max_length)
        self.tokens[rows] = table.repeat_interleave(each, 0)
        self.lengths[rows] = self.prompt_lengths[rows] = prompts.lengths.repeat_interleave(each)
        self.live[rows] = True
        if self.uniform is not None:
            self.uniform[rows] = _uniform(seeds, self.options).to(self.uniform.device)

    def step(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        options, live, lengths = self.options, self.live[rows], self.lengths[rows]
        scores = self.steer(logits, self.tokens[rows], lengths)
        if self.uniform is None:
            chosen = scores.argmax(1)
        else:
            # A row's numbers are used in order of its own tokens, whatever its neighbours do.
            number = self.uniform[rows, lengths - self.prompt_lengths[rows]]
            chosen = kernels.sample(
                scores, number, options.temperature, options.top_k, options.top_p or 1.0
            )
        log_prob = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1)
        position = lengths.clamp(max=options.max_length - 1)
        self.tokens[rows, position] = torch.where(live, chosen, self.tokens[rows, position])
        self.log_probs[rows, position] = torch.where(live, log_prob, self.log_probs[rows, position])
        lengths = lengths + live
        self.lengths[rows] = lengths
        self.live[rows] = live & (chosen != self.end_id) & (lengths < options.max_length)
        return chosen, position, None

    def results(self, slots: Tensor) -> list[list[Written]]:
        each = self.options.rows
        rows = rows_of(slots, each)
        texts = written(
            self.tokens[rows], self.log_probs[rows], self.lengths[rows], self.prompt_lengths[rows]
        )
        return [texts[i : i + each] for i in range(0, len(texts), each)]


def written(tokens: Tensor, log_probs: Tensor, lengths: Tensor, prompts: Tensor) -> list[Written]:
    """Rows of tables to texts on the host."""
    rows = zip(tokens.tolist(), log_probs.tolist(), lengths.tolist(), prompts.tolist(), strict=True)
    return [Written(ids[:end], start, logs[start:end]) for ids, logs, end, start in rows]


def _uniform(seeds: Sequence[int], options: SearchOptions) -> Tensor:
    """[N * R, P] random numbers; a row's depend on its prompt's seed and its own number only."""
    generator, numbers = torch.Generator(), []
    for seed in seeds:
        for row in range(options.rows):
            digest = hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=8).digest()
            generator.manual_seed(int.from_bytes(digest, "big") >> 1)
            uniform = torch.rand(options.max_length, generator=generator, dtype=torch.float32)
            numbers.append(uniform)
    return torch.stack(numbers)
