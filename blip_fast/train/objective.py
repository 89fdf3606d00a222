"""What a training task owns: its batch and its losses. The loop and the model know of neither.

Floor 4's other files treat every task alike through the three protocols here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from blip_fast.data.samples import Sample
from blip_fast.med.blip import MED

B = TypeVar("B", bound="Batch")
Self = TypeVar("Self")


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

    @property
    def keys(self) -> Sequence[str]: ...

    def to(self: Self, device: torch.device) -> Self: ...


class Objective(nn.Module, ABC, Generic[B]):
    """A task: the model it trains, what else it keeps between steps, and its losses.

    Everything that must survive a restart is a parameter or a buffer of this module.

    Attributes:
        model: what is trained; `objective.model.named_parameters()` are the optimizer's.
    """

    model: MED

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> B:
        """Examples to a batch on the host. Runs in the loader's threads and changes nothing."""

    def before_step(self) -> None:
        """Once before each optimizer step: what changes without a gradient, on sharded
        parameters (the temperature's clamp, the momentum encoders)."""

    @abstractmethod
    def forward(self, batch: B, epochs: float) -> Mapping[str, Tensor]:
        """Losses by name, scalars on the device; their sum is minimised.

        Args:
            epochs: epochs trained so far, with the fraction of the current one.
        """
