"""How models run where nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Without gradients, and in the dtype of the weights: an autocast around the call, which would
    change it in the middle of a layer, does not reach in."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield
