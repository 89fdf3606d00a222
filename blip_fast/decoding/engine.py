"""The loop that writes texts: prompts at once, then one token of every live text a step.

Neither the memory nor the cache is ever copied or reordered. A row of the cache is written once at
each position; when a beam continues another, its row of `ancestors` takes over the other's past.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.search import BeamSearch, IndependentSearch, Written
from blip_fast.med.blip import MED
from blip_fast.med.context import PackedMemory, PackedPast, SelfCache, StepMemory, StepPast
from blip_fast.med.memory import ImageMemory, QuestionMemory
from blip_fast.text import PackedText

# To ask a device whether all texts have ended makes the host wait for it, so it is asked seldom.
_STEPS_BETWEEN_CHECKS = {"cpu": 1}
_STEPS_BETWEEN_CHECKS_ON_DEVICE = 8


def generate(
    model: MED,
    memory: ImageMemory | QuestionMemory,
    index: Tensor,
    prompts: PackedText,
    options: SearchOptions,
    seeds: Sequence[int] = (),
) -> list[list[Written]]:
    """Write texts grounded in memories.

    Args:
        index: [N] int64, the memory of each prompt.
        prompts: N sequences beginning with [DEC], of any lengths below `max_length`.
        seeds: one for each prompt, used when sampling; a seed gives the same texts whatever the
            batch is.

    Returns:
        for each prompt its texts, best first where they are beams.

    Raises:
        ValueError: where a prompt leaves no room to write.
    """
    if prompts.max_length >= options.max_length:
        raise ValueError(
            f"a prompt of {prompts.max_length} tokens ([DEC] included) leaves no room under "
            f"max_length {options.max_length}; raise max_length or shorten the prompt"
        )
    with torch.inference_mode():
        return _generate(model, memory, index, prompts, options, seeds)


def _generate(
    model: MED,
    memory: ImageMemory | QuestionMemory,
    index: Tensor,
    prompts: PackedText,
    options: SearchOptions,
    seeds: Sequence[int],
) -> list[list[Written]]:
    search: BeamSearch | IndependentSearch
    end_id = model.config.text.sep_id
    if options.samples or options.num_beams == 1:
        uniform = _uniform(seeds, options, model.device) if options.samples else None
        search = IndependentSearch(prompts, options, end_id, uniform)
    else:
        search = BeamSearch(prompts, options, end_id)

    rows = options.rows
    cache = _new_cache(model, len(prompts) * rows, options.max_length)
    ancestors = _first_ancestors(prompts, rows, options.max_length)
    key_lengths = memory.key_lengths if isinstance(memory, QuestionMemory) else None
    step_memory = StepMemory(memory.pairs, index.repeat_interleave(rows), key_lengths)

    states = _prefill(model, memory, index, prompts, cache, rows, key_lengths)
    logits = model.next_logits(states).repeat_interleave(rows, 0)
    own_row = torch.arange(len(prompts) * rows, device=model.device)
    check = _STEPS_BETWEEN_CHECKS.get(model.device.type, _STEPS_BETWEEN_CHECKS_ON_DEVICE)
    for step in range(options.max_length):
        tokens, positions, parents = search.step(logits)
        if step % check == check - 1 and search.done:
            break
        if parents is not None:
            ancestors = ancestors[parents]
        ancestors[own_row, positions] = own_row
        past = StepPast(cache, ancestors, positions)
        logits = model.next_logits(model.write(tokens, positions, past, step_memory))
    return search.results()


def _prefill(
    model: MED,
    memory: ImageMemory | QuestionMemory,
    index: Tensor,
    prompts: PackedText,
    cache: SelfCache,
    rows: int,
    key_lengths: Tensor | None,
) -> Tensor:
    """Run the prompts, each once, into the cache's first row of each; their last states [N, W]."""
    first_rows = torch.arange(len(prompts), device=model.device) * rows
    past = PackedPast(
        prompts, causal=True, cache=cache, rows=first_rows.repeat_interleave(prompts.lengths)
    )
    grounding = PackedMemory(memory.pairs, index, prompts.offsets, key_lengths)
    states = model.write(prompts.ids, prompts.positions, past, grounding)
    return states[prompts.offsets[1:].long() - 1]


def _new_cache(model: MED, rows: int, positions: int) -> SelfCache:
    text = model.config.text
    shape = (text.depth, rows, positions, 2, text.heads, text.head_width)
    # Zeros, not whatever memory held: a masked key still meets the query, and NaN times 0 is NaN.
    return SelfCache(torch.zeros(shape, dtype=model.dtype, device=model.device))


def _first_ancestors(prompts: PackedText, rows: int, positions: int) -> Tensor:
    """[N * R, P]: every past position of a prompt's rows lies in the first of them."""
    first = torch.arange(len(prompts), device=prompts.device) * rows
    return first.repeat_interleave(rows)[:, None].repeat(1, positions)


def _uniform(seeds: Sequence[int], options: SearchOptions, device: torch.device) -> Tensor:
    """[N * R, P] random numbers; a row's depend on its prompt's seed and its own number only."""
    generator, numbers = torch.Generator(), []
    for seed in seeds:
        for row in range(options.rows):
            digest = hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=8).digest()
            generator.manual_seed(int.from_bytes(digest, "big") >> 1)
            numbers.append(torch.rand(options.max_length, generator=generator))
    return torch.stack(numbers).to(device)
