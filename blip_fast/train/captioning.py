"""Finetuning for captioning: LM on what follows the prompt (BLIP, section 5.2).

The finetuned model is also the captioner of CapFilt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blip_fast.data.clean import clean_caption
from blip_fast.med.blip import MED
from blip_fast.text import Tokenizer
from blip_fast.train.batches import PairBatch, ids_of, keys_of, predicted, stack_images
from blip_fast.train.objective import Example, Objective


class Captioning(Objective[PairBatch]):
    """Label-smoothed cross-entropy, a mean over the tokens behind the prompt.

    Args:
        model: of kind "caption", in full precision.
        prompt: every caption begins with it; its tokens are not learned.
        max_length: of prompt and caption, in tokens; longer ones are cut.
        max_words: of a caption, before that.
    """

    def __init__(
        self,
        model: MED,
        tokenizer: Tokenizer,
        *,
        prompt: str = "a picture of ",
        label_smoothing: float = 0.1,
        max_length: int = 40,
        max_words: int = 30,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.label_smoothing = label_smoothing
        self.max_length, self.max_words = max_length, max_words
        self._prompt_length = int(tokenizer.encode_prompts([prompt], max_length).lengths)

    def collate(self, examples: Sequence[Example]) -> PairBatch:
        captions = [self.prompt + clean_caption(e.sample.text, self.max_words) for e in examples]
        text = self.tokenizer.encode(captions, "[DEC]", self.max_length)
        places = predicted(text, self._prompt_length)
        return PairBatch(keys_of(examples), stack_images(examples), text, ids_of(examples), places)

    def forward(self, batch: PairBatch, epochs: float) -> Mapping[str, Tensor]:
        memory = self.model.remember(self.model.vision(batch.images))
        own = torch.arange(len(batch.text), device=batch.images.device)
        losses = self.model.losses(batch.text, memory, own, self.label_smoothing, batch.places)
        return {"lm": losses.mean()}
