"""Image-text contrastive learning with momentum encoders and feature queues (BLIP, section 3.2).

Each modality's online features are compared with the other's momentum features: those of the
process's own batch and those of past batches of all processes. The similarities themselves are
the `contrastive` room's business; none of them is stored.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.med.blip import MED
from blip_fast.train.gather import gather

# The id of a queue's entry that no batch has filled: positive for no image.
EMPTY = -100


class FeatureQueue(nn.Module):
    """Momentum features of past batches, the oldest overwritten first; a ring of any size.

    All are buffers, equal in all processes, so that a checkpoint carries them.

    Attributes:
        images, texts: [size, E] float32, normalised; random until they are filled.
        ids: [size] int64, the images' ids.
        pointer: [1] int64, where the next entry goes.
    """

    images: Tensor
    texts: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name in ("images", "texts"):
            noise = torch.randn(size, width, generator=generator)
            self.register_buffer(name, F.normalize(noise, dim=1))
        self.register_buffer("ids", torch.full((size,), EMPTY))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    def push(self, images: Tensor, texts: Tensor, ids: Tensor) -> None:
        """Enter the features [B, E] of a batch, those of all processes in order of rank."""
        size = len(self.ids)
        if size == 0:
            return
        # Of a batch larger than the queue the last ones stay, as if entered one by one.
        images, texts, ids = (gather(t)[-size:] for t in (images, texts, ids))
        places = (self.pointer + torch.arange(len(ids), device=ids.device)) % size
        self.images[places], self.texts[places], self.ids[places] = images, texts, ids
        self.pointer.copy_((self.pointer + len(ids)) % size)


class MomentumContrast(nn.Module):
    """Momentum copies of the encoders, their queues, and the ITC loss.

    Args:
        model: the online model, in full precision and not yet sharded.
        momentum: of the copies' moving average; 0.995 in the paper.
        alpha: weight of the soft targets once `alpha_epochs` epochs have passed, up to which it
            grows evenly from 0.
    """

    def __init__(
        self,
        model: MED,
        queue_size: int,
        momentum: float,
        alpha: float,
        alpha_epochs: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = momentum_copy(model)
        self.queue = FeatureQueue(queue_size, model.config.embed_width, seed)
        self.momentum, self.alpha, self.alpha_epochs = momentum, alpha, alpha_epochs

    def follow(self, online: MED) -> None:
        """Move every copied parameter towards the online one; before each step (BLIP 2.1)."""
        sources = dict(online.named_parameters())
        copies = dict(self.model.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(
                [_local(p) for p in copies.values()],
                [_local(sources[name]) for name in copies],
                1 - self.momentum,
            )

    def alpha_at(self, epochs: float) -> float:
        return (
            self.alpha * min(1.0, epochs / self.alpha_epochs) if self.alpha_epochs else self.alpha
        )

    def loss(
        self,
        images: Tensor,
        texts: Tensor,
        momentum_images: Tensor,
        momentum_texts: Tensor,
        ids: Tensor | None,
        temperature: Tensor,
        epochs: float,
    ) -> Tensor:
        """ITC of both directions, and the momentum features into the queue.

        Args:
            images, texts: [B, E] online features; a gradient flows to them.
            momentum_images, momentum_texts: [B, E], of the same batch.
            ids: [B] int64; entries of the bank with the same id are positives. Where none are
                given, a pair is its own only positive.
        """
        if ids is None:
            ids = torch.arange(len(images), device=images.device)
            entered = torch.full_like(ids, EMPTY)
        else:
            entered = ids
        bank_ids = torch.cat([ids, self.queue.ids])
        image_bank = torch.cat([momentum_images, self.queue.images])
        text_bank = torch.cat([momentum_texts, self.queue.texts])
        alpha = self.alpha_at(epochs)
        to_texts = kernels.contrastive(
            images, momentum_images, text_bank, temperature, ids, bank_ids, alpha
        )
        to_images = kernels.contrastive(
            texts, momentum_texts, image_bank, temperature, ids, bank_ids, alpha
        )
        self.queue.push(momentum_images, momentum_texts, entered)
        return (to_texts.mean() + to_images.mean()) / 2


def momentum_copy(model: MED) -> MED:
    """The part of a model that has a momentum copy: vision, text alone, both projections."""
    with torch.device("meta"):
        momentum = MED(replace(model.config, kind="retrieval"))
    for name in ("vision", "text_encoder", "vision_proj", "text_proj"):
        setattr(momentum, name, copy.deepcopy(getattr(model, name)))
    for layer in momentum.text_encoder.layers:
        del layer.cross_attention  # a text alone never reads a memory
    del momentum.itm_head, momentum.temperature
    return momentum.requires_grad_(False)


def _local(parameter: Tensor) -> Tensor:
    """The shard of a parameter that this process holds: both models are sharded alike."""
    return getattr(parameter, "_local_tensor", parameter)
