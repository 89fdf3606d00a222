"""The processes of a run, and the few things that they tell each other.

`torchrun` starts several; without it there is one, and nothing here needs a process group then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def processes(device_type: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for as long as the block lasts.

    Args:
        device_type: "cpu", or "cuda" where each process of a machine takes a GPU of its own.

    Yields:
        This process's device.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device(device_type, local) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(_backend(device_type))
        yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def ensure_group(device_type: str) -> None:
    """Make a group of this process alone where there is none: sharding asks for one."""
    if not dist.is_initialized():
        store = dist.HashStore()
        dist.init_process_group(_backend(device_type), store=store, rank=0, world_size=1)


def rank() -> int:
    """The number of this process, 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place; on the device, without waiting for it."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """A small picklable value of each process, in order of rank."""
    if world() == 1:
        return [value]
    gathered: list[Any] = [None] * world()
    dist.all_gather_object(gathered, value)
    return gathered


def of_first(value: Any) -> Any:
    """The value that the first process has; what others pass does not matter."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _backend(device_type: str) -> str:
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
