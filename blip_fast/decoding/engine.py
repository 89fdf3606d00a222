"""The loop that writes texts: slots are filled from a source for as long as it has something.

Where memory runs out, what was being written begins anew in half as many slots: a text depends on
its prompt, memory and seed alone, so it comes out the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip_fast.decoding.limit import Limit, attempt, default_budget
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.search import Written
from blip_fast.decoding.slots import Request, Slots
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference
from blip_fast.med.memory import ImageMemory, QuestionMemory
from blip_fast.text import PackedText

# Rows that are live at once. On a CPU, so many rows read a weight once (kernels/linear/config.py);
# more would make no token cheaper.
_MOST_ROWS_ON_CPU, _MOST_ROWS_ON_DEVICE = 32, 512


class Source(Protocol):
    """Where requests come from, and the memory that they point into."""

    @property
    def pairs(self) -> Tensor:
        """[layers, M, K, 2, H, D]; asked for after the first request, and always the same."""

    @property
    def key_lengths(self) -> Tensor | None: ...

    def take(self, number: int, idle: bool) -> list[Request]:
        """At most `number` requests; none at its end, or where those alive must end before.

        Args:
            idle: nothing is alive. None means the end then.
        """

    def release(self, request: Request) -> None:
        """A request is done; its memory may be written over."""


class Listed:
    """Requests known from the beginning, about memories that exist."""

    def __init__(self, memory: ImageMemory | QuestionMemory, requests: Iterable[Request]) -> None:
        self.pairs = memory.pairs
        self.key_lengths = memory.key_lengths if isinstance(memory, QuestionMemory) else None
        self._waiting = deque(requests)

    def take(self, number: int, idle: bool) -> list[Request]:
        return [self._waiting.popleft() for _ in range(min(number, len(self._waiting)))]

    def release(self, request: Request) -> None:
        pass


def run(
    model: MED, source: Source, options: SearchOptions, slots: int
) -> Iterator[tuple[Request, list[Written], str]]:
    """Write the texts of all requests of a source, each as soon as they have ended.

    Args:
        slots: requests that are alive at once, at most.

    Yields:
        a request, its texts, best first where they are beams, and an empty string; or no texts,
        and why memory does not suffice even for it alone.
    """
    limit = Limit(model, "rows", slots * options.rows)
    table: Slots | None = None
    again: list[Request] = []  # given back by slots that ran out of memory
    while True:
        free = max(1, limit.now // options.rows) if table is None else table.free
        alive = [] if table is None else table.requests
        requests, again = again[:free], again[free:]
        if len(requests) < free:
            requests += source.take(free - len(requests), idle=not alive and not requests)
        if not requests and not alive:
            return
        table, ended, reason = _advance(model, source, options, table, free, requests)
        for request, texts in ended:
            source.release(request)
            yield request, texts, ""
        if not reason:
            continue
        again = alive + requests + again
        if len(alive) + len(requests) > 1:
            limit.halve((len(alive) + len(requests)) * options.rows)
        else:
            limit.forgive()
            request, *again = again
            source.release(request)
            yield request, [], reason


def _advance(
    model: MED,
    source: Source,
    options: SearchOptions,
    table: Slots | None,
    number: int,
    requests: list[Request],
) -> tuple[Slots | None, list[tuple[Request, list[Written]]], str]:
    """One step in slots that may have to be made first; no slots and a reason where none fit."""

    def work() -> tuple[Slots, list[tuple[Request, list[Written]]]]:
        with inference(model.device):
            slots = table or Slots(model, source.pairs, source.key_lengths, options, number)
            return slots, slots.advance(requests)

    done, reason = attempt(work)
    return (None, [], reason) if done is None else (*done, "")


def default_slots(model: MED, options: SearchOptions, memory_bytes: int) -> int:
    """How many requests should be alive at once.

    Args:
        memory_bytes: of the memories that must be held for each of them; 0 where they are there.
    """
    text, device = model.config.text, model.device
    row_bytes = 2 * text.depth * text.width * options.max_length * model.dtype.itemsize
    most = _MOST_ROWS_ON_CPU if device.type == "cpu" else _MOST_ROWS_ON_DEVICE
    room = default_budget(device) // (memory_bytes + options.rows * row_bytes)
    return max(1, min(most // options.rows, room))


def generate(
    model: MED,
    memory: ImageMemory | QuestionMemory,
    index: Tensor,
    prompts: PackedText,
    options: SearchOptions,
    seeds: Sequence[int] = (),
    slots: int | None = None,
) -> list[list[Written]]:
    """Write texts grounded in memories.

    Args:
        index: [N] int64, the memory of each prompt.
        prompts: N sequences beginning with [DEC], of any lengths below `max_length`.
        seeds: one for each prompt, used when sampling; a seed gives the same texts whatever the
            other prompts and the slots are.
        slots: prompts that are alive at once; as many as there are where it is not given.

    Returns:
        for each prompt its texts, best first where they are beams.

    Raises:
        ValueError: where a prompt leaves no room to write.
        torch.OutOfMemoryError: where memory does not suffice for one prompt alone.
    """
    check_room(model, prompts, options)
    sequences, memories = prompts.tolist(), index.tolist()
    seeds = seeds or [0] * len(sequences)
    requests = [
        Request(place, *row)
        for place, row in enumerate(zip(memories, sequences, seeds, strict=True))
    ]
    results: list[list[Written]] = [[] for _ in requests]
    number = max(1, min(slots or len(requests), len(requests)))
    for request, texts, reason in run(model, Listed(memory, requests), options, number):
        if reason:
            raise torch.OutOfMemoryError(f"one prompt alone is too much: {reason}")
        results[request.place] = texts
    return results


def check_room(model: MED, prompts: PackedText, options: SearchOptions) -> None:
    """Raise a ValueError where a prompt leaves no room to write, or the model has too few
    positions."""
    positions = model.config.text.max_positions
    if options.max_length > positions:
        raise ValueError(
            f"max_length is {options.max_length}; the model has positions for {positions} tokens"
        )
    if prompts.max_length >= options.max_length:
        place = int(prompts.lengths.argmax())
        raise ValueError(
            f"prompt {place} of {prompts.max_length} tokens ([DEC] included) leaves no room under "
            f"max_length {options.max_length}; raise max_length or shorten the prompt"
        )
