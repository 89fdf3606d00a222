"""Finetuning for NLVR2: is a sentence true of two pictures? (BLIP, section 5.4)"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast.data.clean import clean_caption
from blip_fast.med.blip import MED
from blip_fast.text import Tokenizer
from blip_fast.train.batches import ComparisonBatch, keys_of, stack_images
from blip_fast.train.objective import Example, Objective


class NLVR(Objective[ComparisonBatch]):
    """Cross-entropy over true and false.

    Half of the examples have their pictures exchanged and the words left and right with them, as
    in the reference's training data.

    Args:
        model: of kind "nlvr", in full precision.
        max_words: of a sentence; longer ones are cut.
    """

    def __init__(self, model: MED, tokenizer: Tokenizer, *, max_words: int = 40) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_words = model, tokenizer, max_words

    def collate(self, examples: Sequence[Example]) -> ComparisonBatch:
        turned = [example.seed % 2 == 1 for example in examples]
        sentences = [
            clean_caption(exchange_sides(e.sample.text) if turn else e.sample.text, self.max_words)
            for e, turn in zip(examples, turned, strict=True)
        ]
        images = stack_images(examples)
        left, right = images.chunk(2)
        swap = torch.tensor(turned)[:, None, None, None]
        return ComparisonBatch(
            keys=keys_of(examples),
            images=torch.cat([torch.where(swap, right, left), torch.where(swap, left, right)]),
            text=self.tokenizer.encode(sentences, "[ENC]", self.model.config.text.max_positions),
            labels=torch.tensor([int(bool(e.sample.label)) for e in examples]),
        )

    def forward(self, batch: ComparisonBatch, epochs: float) -> Mapping[str, Tensor]:
        memory = self.model.remember(self.model.vision(batch.images))
        number = len(batch.text)
        index = torch.arange(2 * number, device=batch.images.device).view(2, number)
        logits = self.model.compare_logits(batch.text, memory, index)
        return {"nlvr": F.cross_entropy(logits, batch.labels)}


def exchange_sides(sentence: str) -> str:
    """The sentence with left and right exchanged, as in "leftmost" too, but not in "bright"."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)", lambda found: other[found[0]], sentence)
