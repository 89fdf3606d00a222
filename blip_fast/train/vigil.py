"""What a step has to say, carried to the host without making the device wait.

Losses, the gradients' norm, and whether a process was asked to stop travel in one small tensor,
summed over processes, so that all of them know the same and do the same. On a GPU it is looked at
one step later, when it has long arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_fast.train.processes import add_up, gather_objects, world


class NonFinite(ValueError):
    """A loss or a gradient is not a number that can be learned from."""


@dataclass(frozen=True)
class Seen:
    """A step, as a mean over all processes and micro-batches.

    Attributes:
        step: its number; the first is 1.
        rate: the learning rate.
        losses: by name.
        norm: of the gradients, before any clipping.
        stop: whether a process was asked to stop.
        skipped: bad samples so far, of all processes.
    """

    step: int
    rate: float
    losses: dict[str, float]
    norm: float
    stop: bool
    skipped: int


@dataclass(frozen=True)
class _Pending:
    step: int
    rate: float
    names: list[str]
    local: Tensor  # [micro-batches, losses] of this process, on the device
    keys: list[Sequence[str]]
    values: Tensor  # on the host, once `arrived`
    arrived: torch.cuda.Event | None


class Vigil:
    """The reports of steps that nobody has looked at yet.

    Args:
        ahead: how many steps may be under way before one is looked at; by default one on a GPU,
            where waiting would cost, and none on a CPU.
    """

    def __init__(self, device: torch.device, ahead: int | None = None) -> None:
        self.ahead = int(device.type == "cuda") if ahead is None else ahead
        self._pending: deque[_Pending] = deque()

    def report(
        self,
        step: int,
        rate: float,
        losses: Sequence[Mapping[str, Tensor]],
        keys: list[Sequence[str]],
        norm: Tensor,
        stop: bool = False,
        skipped: int = 0,
    ) -> None:
        """Send off what a step has to say.

        Args:
            losses, keys: of each micro-batch.
            norm: of the gradients of all processes.
        """
        names = list(losses[0])
        local = torch.stack([torch.stack([m[n].detach() for n in names]) for m in losses]).double()
        norm = norm.detach().to(local)
        bad = ~(local.isfinite().all() & norm.isfinite())
        flags = [bad.to(local), torch.full_like(norm, stop), torch.full_like(norm, skipped)]
        values = add_up(torch.stack([*local.mean(0), norm, *flags]))
        arrived = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            values = host
        self._pending.append(_Pending(step, rate, names, local, keys, values, arrived))

    def look(self, at_all: bool = False) -> Iterator[Seen]:
        """The steps whose reports are due, or those of all steps.

        Raises:
            NonFinite: naming the step, and the keys of the batches where it happened.
        """
        while len(self._pending) > (0 if at_all else self.ahead):
            yield self._read(self._pending.popleft())

    def _read(self, pending: _Pending) -> Seen:
        if pending.arrived is not None:
            pending.arrived.synchronize()
        *losses, norm, bad, stop, skipped = pending.values.tolist()
        if bad:
            where = _describe(pending)
            raise NonFinite(
                f"step {pending.step}: {where}. The checkpoints are of steps before it. Look at "
                "these samples, or train with a lower init_lr, more warmup_steps or clip_grad_norm"
            )
        means = {n: v / world() for n, v in zip(pending.names, losses, strict=True)}
        return Seen(pending.step, pending.rate, means, norm / world(), stop > 0, int(skipped))


def _describe(pending: _Pending) -> str:
    """What is not finite, and in which batch of which process; all processes ask together."""
    losses = []
    for values, keys in zip(pending.local.tolist(), pending.keys, strict=True):
        bad = [
            f"the loss {name} is {value}"
            for name, value in zip(pending.names, values, strict=True)
            if not math.isfinite(value)
        ]
        if bad:
            losses.append(f"{' and '.join(bad)} in the batch of {', '.join(keys)}")
    everywhere = gather_objects((losses, [key for keys in pending.keys for key in keys]))
    if named := [part for parts, _ in everywhere for part in parts]:
        return "; ".join(named)
    all_keys = ", ".join(key for _, keys in everywhere for key in keys)
    return f"gradients are not finite after the batch of {all_keys}"
