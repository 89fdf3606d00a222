"""Finetuning for retrieval: ITC where images of one id are one image, and ITM (BLIP, section 4.1).

The finetuned model is also the filter of CapFilt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast.data.clean import clean_caption
from blip_fast.med.blip import MED
from blip_fast.text import PackedText, Tokenizer
from blip_fast.train.batches import PairBatch, ids_of, keys_of, predicted, stack_images
from blip_fast.train.gather import gather, gather_live
from blip_fast.train.itc import MomentumContrast
from blip_fast.train.itm import draw, matching_loss, negative_weights
from blip_fast.train.objective import Example, Objective
from blip_fast.train.processes import world


class Retrieval(Objective[PairBatch]):
    """ITC and ITM, equally weighted.

    Args:
        model: of kind "retrieval", in full precision.
        negative_all_rank: whether ITM's negatives come from the batches of all processes.
        max_length: of a text, in tokens; longer ones are cut.
        max_words: of a caption, before that.
    """

    def __init__(
        self,
        model: MED,
        tokenizer: Tokenizer,
        contrast: MomentumContrast,
        *,
        negative_all_rank: bool,
        max_length: int = 35,
        max_words: int = 30,
    ) -> None:
        super().__init__()
        self.model, self.contrast = model, contrast
        self.tokenizer = tokenizer
        self.negative_all_rank = negative_all_rank
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
            images, texts, momentum_images, momentum_texts, batch.ids, temperature, epochs
        )
        return {"itc": itc, "itm": self._itm(batch, tokens, images, texts, temperature)}

    def _itm(
        self, batch: PairBatch, tokens: Tensor, images: Tensor, texts: Tensor, temperature: Tensor
    ) -> Tensor:
        everywhere = self.negative_all_rank and world() > 1
        grounded = batch.text.starting_with(self.model.config.text.enc_id)
        with torch.no_grad():
            all_images, all_texts, all_ids = images, texts, batch.ids
            if everywhere:
                all_images, all_texts, all_ids = (gather(t) for t in (images, texts, batch.ids))
            same = batch.ids[:, None] == all_ids
            negatives = draw(
                negative_weights(texts, all_images, temperature, same, floor=0),
                negative_weights(images, all_texts, temperature, same, floor=0),
            )
        if everywhere:
            # Only the images that were drawn are projected, behind the batch's own.
            drawn = gather_live(tokens)[negatives.images]
            memory = self.model.remember(torch.cat([tokens, drawn]))
            places = len(tokens) + torch.arange(len(tokens), device=tokens.device)
            negative_text = gather_texts(grounded, self.max_length).take(negatives.texts)
        else:
            memory, places = self.model.remember(tokens), negatives.images
            negative_text = grounded.take(negatives.texts)
        return matching_loss(self.model, memory, grounded, negative_text, places, negatives)


def gather_texts(text: PackedText, max_length: int) -> PackedText:
    """The texts of all processes, in order of rank.

    Args:
        max_length: no text of any process is longer, so that none has to ask the others.
    """
    rows = torch.repeat_interleave(text.lengths, output_size=text.ids.numel())
    padded = text.ids.new_zeros(len(text), max_length)
    padded[rows, text.positions] = text.ids
    padded, lengths = gather(padded), gather(text.lengths)
    places = torch.arange(max_length, device=text.device)
    kept = places < lengths[:, None]
    return replace(
        text,
        ids=padded[kept],
        offsets=F.pad(lengths.cumsum(0), (1, 0)).int(),
        positions=places.expand_as(kept)[kept],
        lengths=lengths,
        max_length=max_length,
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
    )
