"""Image-text contrastive loss against a bank of features, with momentum soft targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blip_fast.kernels._ops import (
    REFERENCE,
    Room,
    register_everywhere,
    register_fake,
    register_triton,
)
from blip_fast.kernels.contrastive import chunked, reference

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_room = Room("contrastive", triton=_DTYPES, chunked=_DTYPES)


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
    if temperature.numel() != 1:
        raise ValueError(f"temperature must be a scalar; it is {tuple(temperature.shape)}")
    chosen = _room.choose(features)
    if chosen == REFERENCE:
        return reference.contrastive(features, momentum, bank, temperature, ids, bank_ids, alpha)
    momentum, bank = momentum.detach(), bank.detach()
    arguments = (features, momentum, bank, temperature, ids, bank_ids, alpha)
    if torch.is_grad_enabled() and (features.requires_grad or temperature.requires_grad):
        return _Contrastive.apply(chosen, *arguments)
    losses: Tensor = _room.operator(chosen)(*arguments)[0]
    return losses


class _Contrastive(torch.autograd.Function):
    """The gradient around an opaque forward; it keeps six numbers a row, no similarities."""

    @staticmethod
    def forward(ctx: Any, implementation: str, *arguments: Any) -> Tensor:
        losses, statistics = _room.operator(implementation)(*arguments)
        *tensors, alpha = arguments
        ctx.save_for_backward(*tensors, statistics)
        ctx.implementation, ctx.alpha = implementation, alpha
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = _room.operator(ctx.implementation, "contrastive_backward")
        grad_features, grad_temperature = backward(grad, *ctx.saved_tensors, ctx.alpha)
        return None, grad_features, None, None, grad_temperature, None, None, None


def _fake(
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    losses = features.new_empty(features.shape[0], dtype=torch.float32)
    return losses, losses.new_empty(6, features.shape[0])


def _fake_backward(
    grad: Tensor,
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    statistics: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features), torch.empty_like(temperature)


register_everywhere("contrastive", "chunked", chunked.contrastive)
register_everywhere("contrastive_backward", "chunked", chunked.contrastive_backward)
register_triton("contrastive", "contrastive", "contrastive_backward")
register_fake("contrastive", _fake)
register_fake("contrastive_backward", _fake_backward)
