"""Image-text contrastive loss against a bank of features, with momentum soft targets."""

from __future__ import annotations

from torch import Tensor

from blip_fast.kernels._ops import Room
from blip_fast.kernels.contrastive import reference

_room = Room("contrastive")


def contrastive(
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    alpha: float,
) -> Tensor:
    """ITC of one direction: cross-entropy of similarities with softened targets.

    y = alpha * softmax(momentum @ bank.T / temperature) + (1 - alpha) * positives, where the
    positives of a row are the bank's entries of the same id, sharing 1 equally. The loss is
    -sum y log softmax(features @ bank.T / temperature). No gradient flows through y, `momentum`
    or `bank` (BLIP's blip_pretrain.py; with ids as in blip_retrieval.py).

    Args:
        features: [B, E], normalised.
        momentum: [B, E], the same items seen by the momentum encoder.
        bank: [Q, E], momentum features of the other modality: the batch, then the queue.
        temperature: a scalar tensor; a gradient flows to it.
        ids: [B] int64.
        bank_ids: [Q] int64; every id of the batch stands in it.
        alpha: weight of the soft targets.

    Returns:
        [B] float32.

    Raises:
        ValueError: where shapes do not fit.
    """
    if features.shape != momentum.shape or bank.shape[1:] != features.shape[1:]:
        raise ValueError(
            f"features {tuple(features.shape)}, momentum {tuple(momentum.shape)} and bank "
            f"{tuple(bank.shape)} do not fit"
        )
    if ids.shape != features.shape[:1] or bank_ids.shape != bank.shape[:1]:
        raise ValueError(
            f"{features.shape[0]} features and {bank.shape[0]} bank entries need as many ids; "
            f"there are {ids.numel()} and {bank_ids.numel()}"
        )
    _room.choose(features)
    return reference.contrastive(features, momentum, bank, temperature, ids, bank_ids, alpha)
