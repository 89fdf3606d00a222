"""NLVR2: is a sentence true of a pair of images?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blip_fast.images import ImageOptions, Picture
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.match import encode, grounded_token, warn_of_failures
from blip_fast.tasks.views import ImageList, views
from blip_fast.text import Tokenizer


def compare(
    model: MED,
    tokenizer: Tokenizer,
    left: ImageList,
    right: ImageList,
    sentences: Sequence[str],
    max_length: int,
    image_options: ImageOptions,
    batch_size: int,
) -> Tensor:
    """[N] float32: the probability that sentence n is true; NaN where an image cannot be read."""
    truth = torch.full((len(sentences),), torch.nan, dtype=torch.float32)
    failures: dict[int, Picture] = {}
    for memory, pairs, sides in _pairs_seen(
        model, left, right, image_options, batch_size, failures
    ):
        some = [sentences[i] for i in pairs]
        text = encode(tokenizer, some, grounded_token(model), max_length).to(model.device)
        with inference(model.device):
            logits = model.compare_logits(text, memory, torch.tensor(sides, device=model.device))
        truth[pairs] = logits.softmax(1)[:, 1].cpu()
    warn_of_failures(failures)
    return truth


def _pairs_seen(
    model: MED,
    left: ImageList,
    right: ImageList,
    options: ImageOptions,
    batch_size: int,
    failures: dict[int, Picture],
) -> Iterator[tuple[ImageMemory, list[int], list[list[int]]]]:
    """Memories, the pairs both of whose images they hold, and the rows of left and right."""
    if isinstance(left, ImageMemory) and isinstance(right, ImageMemory):
        memory = ImageMemory.join([left, right])
        for start in range(0, len(left), batch_size):
            pairs = list(range(start, min(start + batch_size, len(left))))
            yield memory, pairs, [pairs, [len(left) + i for i in pairs]]
        return
    if isinstance(left, ImageMemory) or isinstance(right, ImageMemory):
        raise ValueError("one side is an ImageMemory, the other is not; see both, or neither")
    for start in range(0, len(left), batch_size):
        pairs = list(range(start, min(start + batch_size, len(left))))
        both = [left[i] for i in pairs] + [right[i] for i in pairs]
        unread: dict[int, Picture] = {}
        seen = list(views(model, both, options, len(both), unread))
        failures.update({2 * start + place: picture for place, picture in unread.items()})
        row_of = {p: row for row, p in enumerate(p for view in seen for p in view.places)}
        whole = [j for j in range(len(pairs)) if j in row_of and j + len(pairs) in row_of]
        if whole:
            sides = [[row_of[j] for j in whole], [row_of[j + len(pairs)] for j in whole]]
            memory = ImageMemory.join([view.memory for view in seen])
            yield memory, [pairs[j] for j in whole], sides
