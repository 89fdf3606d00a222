"""Image-major matching: many texts against many images, each image's memory read in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from blip_fast.decoding.limit import Limit, attempt
from blip_fast.text import PackedText, pack

# Tokens run through the text layers at once: enough to fill a matrix unit, little enough that
# the activations of a base model stay in the tens of megabytes.
_TOKENS_PER_CALL = 4096


def over_pairs(
    model: nn.Module,
    compute: Callable[[PackedText, Tensor], Tensor],
    sequences: Sequence[Sequence[int]],
    memory_rows: Tensor,
    text_rows: Tensor,
) -> Tensor:
    """Run `compute` over (memory, text) pairs, sorted by memory, a bounded number at a time, and
    half as many where memory runs out.

    Args:
        model: what is learned of its limits holds for its later calls.
        compute: packed texts of some pairs and the memory row of each [P'] to results [P', ...].
        sequences: the token ids of every text.
        memory_rows, text_rows: [P] int64 on the host, the pairs.

    Returns:
        [P, ...], in the order given.

    Raises:
        torch.OutOfMemoryError: where memory does not suffice for one pair alone.
    """
    device = memory_rows.device
    order = torch.argsort(memory_rows * (len(sequences) + 1) + text_rows, stable=True)
    lengths = torch.tensor([len(s) for s in sequences])[text_rows[order]].tolist()
    limit = Limit(model, "tokens", _TOKENS_PER_CALL)

    def work(part: Tensor) -> Tensor:
        text = pack([sequences[row] for row in text_rows[part].tolist()])
        return compute(text, memory_rows[part])

    results: list[Tensor] = []
    start = 0
    while start < len(order):
        stop = _end(lengths, start, limit.now)
        result, reason = attempt(partial(work, order[start:stop]))
        if result is not None:
            results.append(result)
            start = stop
        elif stop - start > 1:
            limit.halve(sum(lengths[start:stop]))
        else:
            limit.forgive()
            raise torch.OutOfMemoryError(f"one pair alone is too much: {reason}")
    joined = torch.cat(results)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=device)
    return joined[back.to(joined.device)]


def _end(lengths: Sequence[int], start: int, most: int) -> int:
    """The end of the longest stretch from `start` of at most so many tokens, or of one pair."""
    stop, tokens = start + 1, lengths[start]
    while stop < len(lengths) and tokens + lengths[stop] <= most:
        tokens += lengths[stop]
        stop += 1
    return stop
