"""Image-text matching against hard negatives drawn by contrastive similarity (BLIP, section 3.2).

Positives and both kinds of negatives are one pass of packed texts over one memory: a negative is
nothing but another integer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast.med.blip import MED
from blip_fast.med.memory import LiveMemory
from blip_fast.text import PackedText, join

_FLOOR = 1e-4  # of a negative's weight in pretraining: the least similar may be drawn, too
_VOID = -100  # label of a pair that does not count


@dataclass(frozen=True)
class Negatives:
    """A negative for each item of a batch.

    Attributes:
        images: [B] int64, for each text an image that is not its own.
        texts: [B] int64, for each image a text that is not its own.
        has_image, has_text: [B] bool: False where the batch held none, so that the draw is void.
    """

    images: Tensor
    texts: Tensor
    has_image: Tensor
    has_text: Tensor


def negative_weights(
    queries: Tensor,
    candidates: Tensor,
    temperature: Tensor,
    positives: Tensor,
    floor: float = _FLOOR,
) -> Tensor:
    """How likely each candidate is to be drawn as a query's negative, up to a factor.

    Args:
        queries, candidates: [B, E] and [C, E] features of the two modalities.
        positives: [B, C] bool; these are never drawn.
        floor: added to every softmax weight; 0 in retrieval finetuning.

    Returns:
        [B, C] float32.
    """
    similarity = queries.float() @ candidates.float().T / temperature.float()
    return (similarity.softmax(1) + floor).masked_fill(positives, 0)


def draw(image_weights: Tensor, text_weights: Tensor) -> Negatives:
    """Draw all negatives of a batch in one call on the device.

    Args:
        image_weights: [B, C], of images as negatives for each text.
        text_weights: [B, C], of texts as negatives for each image.
    """
    # Of features that are not finite nothing can be drawn; their losses say so a little later.
    weights = torch.cat([image_weights, text_weights]).nan_to_num(0)
    has = weights.sum(1) > 0
    # A row of zeros cannot be drawn from. What it gives instead is void.
    drawn = torch.multinomial(weights + ~has[:, None], 1)[:, 0]
    images, texts = drawn.chunk(2)
    has_image, has_text = has.chunk(2)
    return Negatives(images, texts, has_image, has_text)


def matching_loss(
    model: MED,
    memory: LiveMemory,
    text: PackedText,
    negative_text: PackedText,
    negative_images: Tensor,
    negatives: Negatives,
) -> Tensor:
    """ITM over B positives and 2B negatives, a plain mean (BLIP 2.1, steps 8 to 10).

    Args:
        memory: its first B images are the texts' own.
        text: B texts beginning with [ENC].
        negative_text: for each image a text that is not its own, beginning with [ENC].
        negative_images: [B] int64, for each text the place in `memory` of an image not its own.
    """
    own = torch.arange(len(text), device=text.device)
    texts = join([text, text, negative_text])
    logits = model.match_logits(texts, memory, torch.cat([own, negative_images, own]))
    labels = torch.cat(
        [
            torch.ones_like(own),
            torch.where(negatives.has_image, 0, _VOID),
            torch.where(negatives.has_text, 0, _VOID),
        ]
    )
    return F.cross_entropy(logits, labels, ignore_index=_VOID)
