"""NLVR2: is a sentence true of a pair of images?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.images import ImageOptions, Picture
from blip_fast.med.blip import MED
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.match import encode, grounded_token, warn_of_failures
from blip_fast.tasks.views import Images, views
from blip_fast.text import Tokenizer


def compare(
    model: MED,
    tokenizer: Tokenizer,
    left: Sequence[Images],
    right: Sequence[Images],
    sentences: Sequence[str],
    max_length: int,
    image_options: ImageOptions,
    batch_size: int,
) -> Tensor:
    """[N] float32: the probability that sentence n is true; NaN where an image cannot be read."""
    truth = torch.full((len(sentences),), torch.nan)
    failures: dict[int, Picture] = {}
    for start in range(0, len(sentences), batch_size):
        pairs = list(range(start, min(start + batch_size, len(sentences))))
        both = [left[i] for i in pairs] + [right[i] for i in pairs]
        unread: dict[int, Picture] = {}
        seen = list(views(model, both, image_options, len(both), unread))
        places = [place for view in seen for place in view.places]
        row_of = {place: row for row, place in enumerate(places)}
        whole = [j for j in range(len(pairs)) if j in row_of and j + len(pairs) in row_of]
        if whole:
            memory = ImageMemory.join([view.memory for view in seen])
            sides = [[row_of[j] for j in whole], [row_of[j + len(pairs)] for j in whole]]
            chosen = [pairs[j] for j in whole]
            text = encode(
                tokenizer, [sentences[i] for i in chosen], grounded_token(model), max_length
            ).to(model.device)
            index = torch.tensor(sides, device=model.device)
            with torch.inference_mode():
                logits = model.compare_logits(text, memory, index)
            truth[chosen] = logits.softmax(1)[:, 1].cpu()
        failures.update({2 * start + place: picture for place, picture in unread.items()})
    warn_of_failures(failures)
    return truth
