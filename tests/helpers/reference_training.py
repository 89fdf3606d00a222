"""BLIP's training losses step by step: padded, masked, every pass on its own, nothing shared.

Written on `reference_med`, on state dicts with Salesforce's names, without a line of blip_fast's
training. Negatives are given: drawing them is random, and tested for itself.

Shapes: B texts of L tokens padded with zeros, `mask` [B, L]; `images` normalised [B, 3, S, S].
"""

from __future__ import annotations

from dataclasses import dataclass

import reference_med as med
import torch
from reference_med import State
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Queue:
    """Features as columns [E, Q], as the reference keeps them, and the images' ids [Q]."""

    images: Tensor
    texts: Tensor
    ids: Tensor
    pointer: int

    def push(self, images: Tensor, texts: Tensor, ids: Tensor) -> None:
        for image, text, number in zip(images, texts, ids, strict=True):
            self.images[:, self.pointer] = image
            self.texts[:, self.pointer] = text
            self.ids[self.pointer] = number
            self.pointer = (self.pointer + 1) % self.ids.numel()


@dataclass
class Texts:
    """ids [B, L] beginning with anything; `starting` sets what they begin with."""

    ids: Tensor
    mask: Tensor

    def starting(self, first: int) -> Tensor:
        ids = self.ids.clone()
        ids[:, 0] = first
        return ids


def update_momentum(momentum: State, online: State, m: float) -> None:
    for name, tensor in momentum.items():
        tensor.copy_(m * tensor + (1 - m) * online[name].detach())


def itc(
    state: State,
    momentum: State,
    queue: Queue,
    images: Tensor,
    texts: Texts,
    positives: Tensor,
    alpha: float,
    cls: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and the momentum features of the batch; `positives` [B, B + Q] sums to 1 a row."""
    ids, mask = texts.starting(cls), texts.mask
    image = med.image_feature(state, med.vit(state, images))
    text = med.text_feature(state, ids, mask)
    with torch.no_grad():
        image_m = med.image_feature(momentum, med.vit(momentum, images))
        text_m = med.text_feature(momentum, ids, mask)
        image_all = torch.cat([image_m.T, queue.images], dim=1)
        text_all = torch.cat([text_m.T, queue.texts], dim=1)
        soft_i2t = (image_m @ text_all / state["temp"]).softmax(1)
        soft_t2i = (text_m @ image_all / state["temp"]).softmax(1)
        target_i2t = alpha * soft_i2t + (1 - alpha) * positives
        target_t2i = alpha * soft_t2i + (1 - alpha) * positives
    sim_i2t = image @ text_all / state["temp"]
    sim_t2i = text @ image_all / state["temp"]
    loss_i2t = -(sim_i2t.log_softmax(1) * target_i2t).sum(1).mean()
    loss_t2i = -(sim_t2i.log_softmax(1) * target_t2i).sum(1).mean()
    return (loss_i2t + loss_t2i) / 2, image_m, text_m


def itm(
    state: State,
    tokens: Tensor,
    texts: Texts,
    negative_tokens: Tensor,
    negative_texts: Texts,
    enc: int,
) -> Tensor:
    """Positives in one pass, both kinds of negatives in another.

    Args:
        negative_tokens: [B, S, W], for each text the tokens of an image that is not its own.
        negative_texts: for each image a text that is not its own.
    """
    ids = texts.starting(enc)
    positive = med.itm_logits(state, ids, texts.mask, tokens)
    longest = max(ids.shape[1], negative_texts.ids.shape[1])
    both_ids = torch.cat([_wide(ids, longest), _wide(negative_texts.starting(enc), longest)])
    both_mask = torch.cat([_wide(texts.mask, longest), _wide(negative_texts.mask, longest)])
    negative = med.itm_logits(state, both_ids, both_mask, torch.cat([negative_tokens, tokens]))
    labels = torch.cat([torch.ones(len(ids)), torch.zeros(2 * len(ids))]).long()
    return F.cross_entropy(torch.cat([positive, negative]), labels)


def lm(
    state: State,
    tokens: Tensor,
    texts: Texts,
    dec: int,
    smoothing: float,
    prompt_length: int = 1,
) -> Tensor:
    """A mean over the tokens at `prompt_length` and later."""
    ids = texts.starting(dec)
    logits = med.lm_logits(state, ids, texts.mask, tokens)
    targets = ids.masked_fill(texts.mask == 0, -100)
    targets[:, :prompt_length] = -100
    flat = logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(flat, targets[:, 1:].flatten(), label_smoothing=smoothing)


def vqa(
    state: State,
    tokens: Tensor,
    questions: Texts,
    answers: Texts,
    question_of: Tensor,
    weights: Tensor,
    smoothing: float,
) -> Tensor:
    """Weighted sums of token losses, divided by the number of questions."""
    question = (questions.ids[question_of], questions.mask[question_of])
    logits = med.answer_logits(state, question, tokens[question_of], (answers.ids, answers.mask))
    losses = med.lm_losses(logits, answers.ids, answers.mask, smoothing).sum(1)
    return (weights * losses).sum() / len(questions.ids)


def _wide(rows: Tensor, length: int) -> Tensor:
    return F.pad(rows, (0, length - rows.shape[1]))
