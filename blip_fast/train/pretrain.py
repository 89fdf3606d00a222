"""Pretraining: ITC, ITM and LM over one look at each image (BLIP, section 3.2).

The encoder's and the decoder's cross-attention share their weights, so one projection of the image
tokens serves ITM's positives, both kinds of its negatives, and LM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blip_fast.data.clean import clean_caption
from blip_fast.med.blip import MED
from blip_fast.text import Tokenizer
from blip_fast.train.batches import PairBatch, ids_of, keys_of, predicted, stack_images
from blip_fast.train.itc import MomentumContrast
from blip_fast.train.itm import draw, matching_loss, negative_weights
from blip_fast.train.objective import Example, Objective


class Pretrain(Objective[PairBatch]):
    """The three objectives, equally weighted.

    Args:
        model: of kind "pretrain", in full precision.
        max_length: of a text, in tokens; longer ones are cut.
        max_words: of a caption, before that.
    """

    def __init__(
        self,
        model: MED,
        tokenizer: Tokenizer,
        contrast: MomentumContrast,
        *,
        label_smoothing: float = 0.1,
        max_length: int = 30,
        max_words: int = 30,
    ) -> None:
        super().__init__()
        self.model, self.contrast = model, contrast
        self.tokenizer = tokenizer
        self.label_smoothing = label_smoothing
        self.max_length, self.max_words = max_length, max_words

    def collate(self, examples: Sequence[Example]) -> PairBatch:
        captions = [clean_caption(e.sample.text, self.max_words) for e in examples]
        text = self.tokenizer.encode(captions, "[CLS]", self.max_length)
        return PairBatch(
            keys_of(examples), stack_images(examples), text, ids_of(examples), predicted(text)
        )

    def before_step(self) -> None:
        self.model.temperature.clamp()
        self.contrast.follow(self.model)

    def forward(self, batch: PairBatch, epochs: float) -> Mapping[str, Tensor]:
        model, momentum = self.model, self.contrast.model
        temperature = model.temperature()
        tokens = model.vision(batch.images)
        images, texts = model.image_feature(tokens), model.text_feature(batch.text)
        with torch.no_grad():
            momentum_images = momentum.image_feature(momentum.vision(batch.images))
            momentum_texts = momentum.text_feature(batch.text)
        itc = self.contrast.loss(
            images, texts, momentum_images, momentum_texts, None, temperature, epochs
        )
        memory = model.remember(tokens)
        own = torch.arange(len(batch.text), device=tokens.device)
        with torch.no_grad():
            same = own[:, None] == own
            negatives = draw(
                negative_weights(texts, momentum_images, temperature, same),
                negative_weights(images, momentum_texts, temperature, same),
            )
        grounded = batch.text.starting_with(model.config.text.enc_id)
        itm = matching_loss(
            model, memory, grounded, grounded.take(negatives.texts), negatives.images, negatives
        )
        written = batch.text.starting_with(model.config.text.dec_id)
        lm = model.losses(written, memory, own, self.label_smoothing, batch.places).mean()
        return {"itc": itc, "itm": itm, "lm": lm}
