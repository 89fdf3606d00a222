"""What a training task owns: its batch and its losses. The loop and the model know of neither.

Floor 4's other files treat every task alike through the three protocols here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from blip_fast.data.samples import Sample
from blip_fast.med.blip import MED

B = TypeVar("B", bound="Batch")


@dataclass(frozen=True)
class Example:
    """A sample whose pictures are decoded and augmented.

    Attributes:
        pixels: uint8 [images, 3, S, S].
        seed: of every random choice about this example; the same in a repeated run.
    """

    sample: Sample
    pixels: Tensor
    seed: int


class Batch(Protocol):
    """What a task's `collate` makes of examples.

    Attributes:
        keys: of its samples, to name them where something goes wrong.
    """

    keys: Sequence[str]

    def to(self: B, device: torch.device) -> B: ...


class Objective(nn.Module):
    """A task: the model it trains, what else it keeps between steps, and its losses.

    Everything that must survive a restart is a parameter or a buffer of this module.

    Attributes:
        model: what is trained; `objective.model.named_parameters()` are the optimizer's.
    """

    model: MED

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples to a batch on the host. Runs in the loader's threads and changes nothing."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Once before each optimizer step: what changes without a gradient, on sharded
        parameters (the temperature's clamp, the momentum encoders)."""

    def forward(self, batch: Batch, epochs: float) -> Mapping[str, Tensor]:
        """Losses by name, scalars on the device; their sum is minimised.

        Args:
            epochs: epochs trained so far, with the fraction of the current one.
        """
        raise NotImplementedError
