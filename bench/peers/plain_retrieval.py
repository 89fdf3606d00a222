"""BLIP's retrieval evaluation as its authors' code has it, in plain PyTorch.

Texts padded to 35 tokens, the tokens of all images kept on the host, attention scores stored. Each
query is one call: an image is repeated for each of its candidate texts, or the tokens of candidate
images are gathered for a text, and their keys and values are projected anew in every layer. On a
state dict with Salesforce's names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.peers.plain_pretrain import State, bert, image_feature, linear, text_feature

LENGTH = 35
UNSCORED = -100.0


@dataclass
class PlainRetrieval:
    """Images [N, S, W] and texts [T, 35] of an evaluation.

    Attributes:
        ids, mask: int64; each text begins with [ENC].
    """

    state: State
    tokens: Tensor
    ids: Tensor
    mask: Tensor

    def cosines(self, cls_id: int) -> Tensor:
        """[N, T]: ITC."""
        texts = self.ids.clone()
        texts[:, 0] = cls_id
        written = torch.cat(
            [
                text_feature(self.state, ids, mask)
                for ids, mask in zip(texts.split(256), self.mask.split(256), strict=True)
            ]
        )
        return image_feature(self.state, self.tokens) @ written.T

    def of_image(self, image: int, texts: Tensor) -> Tensor:
        """Logits of a match of one image with its candidates."""
        repeated = self.tokens[image].repeat(len(texts), 1, 1)
        return self._itm(self.ids[texts], self.mask[texts], repeated)

    def of_text(self, text: int, images: Tensor) -> Tensor:
        """Logits of a match of one text with its candidates."""
        ids = self.ids[text].repeat(len(images), 1)
        mask = self.mask[text].repeat(len(images), 1)
        return self._itm(ids, mask, self.tokens[images])

    def _itm(self, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        states = bert(self.state, "text_encoder.", ids, mask, tokens)
        return linear(self.state, "itm_head", states[:, 0])[:, 1]

    def evaluate(self, cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores [N, T] of texts for images, and [T, N] of images for texts."""
        to_texts = torch.full(cosines.shape, UNSCORED)
        to_images = torch.full(cosines.T.shape, UNSCORED)
        for image, row in enumerate(cosines):
            best = row.topk(min(k, len(row)))
            to_texts[image, best.indices] = self.of_image(image, best.indices) + best.values
        for text, row in enumerate(cosines.T):
            best = row.topk(min(k, len(row)))
            to_images[text, best.indices] = self.of_text(text, best.indices) + best.values
        return to_texts, to_images
