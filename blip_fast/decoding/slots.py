"""A fixed number of slots in which texts are written, each slot the texts of one prompt.

When the texts of a slot have ended, another prompt takes it at the next step, so nothing waits for
the longest text. All tables keep their shape. Neither the memory nor the cache is ever copied or
reordered: a row of the cache is written once at each position, and when a beam continues another,
its row of `ancestors` takes over the other's past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_fast.decoding.beams import BeamSearch
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.replay import Recorder, Replay, recorder_of
from blip_fast.decoding.search import IndependentSearch, Search, Written, rows_of
from blip_fast.med.blip import MED
from blip_fast.med.context import PackedMemory, PackedPast, SelfCache, StepMemory, StepPast
from blip_fast.text import pack

# A CPU is asked after every step which rows go on, and computes only those. Another device would
# have to wait for the answer, so it computes all rows, always in the same places: one recorded
# step is replayed, and it is asked seldom whether texts ended.
_STEPS_BETWEEN_QUESTIONS = 8


@dataclass(frozen=True)
class Request:
    """What to write.

    Attributes:
        place: of the request among its caller's.
        memory: the row of the memory that the texts are grounded in.
        prompt: token ids, [DEC] first.
        seed: of sampling; it alone decides what is drawn.
    """

    place: int
    memory: int
    prompt: Sequence[int]
    seed: int = 0


class Slots:
    """Live sequences with their self-attention cache.

    Args:
        pairs: [layers, M, K, 2, H, D], the memories; read where they lie.
        key_lengths: [M] int64, where memories are of unequal length.
        number: of slots; each has `options.rows` rows.
        recorder: of steps, see `Replay`; the device's own where none is given. With one, all rows
            are computed in every step.
    """

    def __init__(
        self,
        model: MED,
        pairs: Tensor,
        key_lengths: Tensor | None,
        options: SearchOptions,
        number: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._model, self._pairs, self._key_lengths = model, pairs, key_lengths
        self._options, self._each = options, options.rows
        device, text = model.device, model.config.text
        rows, width = number * options.rows, options.max_length
        self._search: Search
        if options.samples or options.num_beams == 1:
            self._search = IndependentSearch(options, text.sep_id, number, device)
        else:
            self._search = BeamSearch(options, text.sep_id, number, device)
        self._cache = SelfCache.empty(text, rows, width, model.dtype, device)
        self._all = torch.arange(rows, device=device)
        self._ancestors = self._all[:, None].repeat(1, width)
        self._memory = torch.zeros_like(self._all)
        self._states = torch.zeros(rows, text.width, dtype=model.dtype, device=device)
        self._requests: list[Request | None] = [None] * number
        # The tokens chosen last, not yet run: rows, tokens, positions.
        self._chosen: tuple[Tensor, Tensor, Tensor] | None = None
        recorder = recorder or (recorder_of(device) if options.graphs else None)
        self._compact = device.type == "cpu" and recorder is None
        self._step = Replay(recorder)
        self._steps = 0

    @property
    def requests(self) -> list[Request]:
        """What is being written."""
        return [request for request in self._requests if request is not None]

    @property
    def free(self) -> int:
        """How many slots have no request."""
        return self._requests.count(None)

    def advance(self, requests: Sequence[Request]) -> list[tuple[Request, list[Written]]]:
        """Let requests in, at most `free`, and write one token of every live text.

        Returns:
            the requests whose texts have ended, and their texts, best first where they are beams.
        """
        vacant = [slot for slot, request in enumerate(self._requests) if request is None]
        slots = vacant[: len(requests)]
        for slot, request in zip(slots, requests, strict=True):
            self._requests[slot] = request
        if requests:
            self._run_chosen()
            self._begin(slots, requests)
            self._choose()
        else:
            self._step(self._write_token)
        return self._ended()

    def _write_token(self) -> None:
        """One token of every live text, where nobody enters."""
        self._run_chosen()
        self._choose()

    def _begin(self, slots: Sequence[int], requests: Sequence[Request]) -> None:
        """Run prompts, each once, into the first row of its slot."""
        model, device = self._model, self._model.device
        prompts = pack([request.prompt for request in requests]).to(device)
        where = torch.tensor(slots, device=device)
        memory = torch.tensor([request.memory for request in requests], device=device)
        self._search.admit(where, prompts, [request.seed for request in requests])
        first, rows = where * self._each, rows_of(where, self._each)
        self._memory[rows] = memory.repeat_interleave(self._each)
        # Every past position of a slot's rows lies in the first of them.
        self._ancestors[rows] = first.repeat_interleave(self._each)[:, None].expand(
            -1, self._ancestors.shape[1]
        )
        owner = torch.repeat_interleave(first, prompts.lengths, output_size=prompts.ids.numel())
        past = PackedPast(prompts, causal=True, cache=self._cache, rows=owner)
        grounding = PackedMemory(self._pairs, memory, prompts.offsets, self._key_lengths)
        states = model.write(prompts.ids, prompts.positions, past, grounding)
        last = states[prompts.offsets[1:].long() - 1]
        self._states[rows] = last.repeat_interleave(self._each, 0)

    def _choose(self) -> None:
        """Choose the next token of every row from its last state."""
        rows = self._search.live.nonzero()[:, 0] if self._compact else self._all
        logits = self._model.next_logits(self._states[rows])
        tokens, positions, parents = self._search.step(logits, rows)
        if parents is not None:
            self._ancestors[rows] = self._ancestors[parents]
        self._ancestors[rows, positions] = rows
        if self._compact or self._chosen is None:
            self._chosen = rows, tokens, positions
        else:  # where the recorded step looks for them
            self._chosen[1].copy_(tokens)
            self._chosen[2].copy_(positions)

    def _run_chosen(self) -> None:
        """Run the tokens chosen last, except those that ended their texts."""
        if self._chosen is None:
            return
        rows, tokens, positions = self._chosen
        if self._compact:
            goes_on = self._search.live[rows]
            rows, tokens, positions = rows[goes_on], tokens[goes_on], positions[goes_on]
            if not len(rows):
                return
        past = StepPast(self._cache, rows, self._ancestors[rows], positions, positions + 1)
        memory = StepMemory(self._pairs, self._memory[rows], self._key_lengths)
        self._states[rows] = self._model.write(tokens, positions, past, memory)

    def _ended(self) -> list[tuple[Request, list[Written]]]:
        """Free the slots whose texts have all ended."""
        self._steps += 1
        if not self._compact and self._steps % _STEPS_BETWEEN_QUESTIONS:
            return []
        live = self._search.live.view(-1, self._each).any(1).tolist()
        ended = [
            (slot, request)
            for slot, request in enumerate(self._requests)
            if request is not None and not live[slot]
        ]
        if not ended:
            return []
        slots = [slot for slot, _ in ended]
        texts = self._search.results(torch.tensor(slots, device=self._model.device))
        for slot in slots:
            self._requests[slot] = None
        return [(request, found) for (_, request), found in zip(ended, texts, strict=True)]
