"""Tensors of all processes, joined in order of rank; those of one process are its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blip_fast.train.processes import world


def gather(tensor: Tensor) -> Tensor:
    """[B, ...] of each process -> [world * B, ...], without gradients."""
    if world() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_live(tensor: Tensor) -> Tensor:
    """The same with gradients: what all processes make of a tensor adds up in its own process."""
    if world() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        parts = [part.contiguous() for part in grad.chunk(world())]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own
