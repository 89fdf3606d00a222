"""Tensors of all processes, joined in order of rank; those of one process are its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together; 1 where no group of them was made."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """[B, ...] of each process -> [world * B, ...], without gradients."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_live(tensor: Tensor) -> Tensor:
    """The same with gradients: what all processes make of a tensor adds up in its own process."""
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        parts = [part.contiguous() for part in grad.chunk(world_size())]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own
