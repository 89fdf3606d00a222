"""Image-major matching: many texts against many images, each image's memory read in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blip_fast.text import PackedText, pack

# Tokens run through the text layers at once: enough to fill a matrix unit, little enough that
# the activations of a base model stay in the tens of megabytes.
_TOKENS_PER_CALL = 4096


def over_pairs(
    compute: Callable[[PackedText, Tensor], Tensor],
    sequences: Sequence[Sequence[int]],
    memory_rows: Tensor,
    text_rows: Tensor,
) -> Tensor:
    """Run `compute` over (memory, text) pairs, sorted by memory, a bounded number at a time.

    Args:
        compute: packed texts of some pairs and the memory row of each [P'] to results [P', ...].
        sequences: the token ids of every text.
        memory_rows, text_rows: [P] int64 on the host, the pairs.

    Returns:
        [P, ...], in the order given.
    """
    device = memory_rows.device
    order = torch.argsort(memory_rows * (len(sequences) + 1) + text_rows, stable=True)
    results = []
    for part in _parts(order, text_rows, sequences):
        text = pack([sequences[row] for row in text_rows[part].tolist()])
        results.append(compute(text, memory_rows[part]))
    joined = torch.cat(results)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=device)
    return joined[back.to(joined.device)]


def _parts(
    order: Tensor, text_rows: Tensor, sequences: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Consecutive slices of `order` of at most `_TOKENS_PER_CALL` tokens, or one pair."""
    lengths = torch.tensor([len(s) for s in sequences])[text_rows[order]].tolist()
    start = tokens = 0
    for stop, length in enumerate(lengths):
        if tokens + length > _TOKENS_PER_CALL and stop > start:
            yield order[start:stop]
            start, tokens = stop, 0
        tokens += length
    if start < len(lengths):
        yield order[start:]
