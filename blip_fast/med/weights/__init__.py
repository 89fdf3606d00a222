"""Checkpoints: read from every layout that BLIP is published in, and written to each of them."""

from __future__ import annotations

from blip_fast.med.weights.errors import WeightsError
from blip_fast.med.weights.names import (
    ours_to_salesforce,
    ours_to_transformers,
    salesforce_to_ours,
    transformers_to_ours,
)
from blip_fast.med.weights.read import Checkpoint, build, from_live_transformers, read_checkpoint
from blip_fast.med.weights.table import Layout
from blip_fast.med.weights.write import write_checkpoint

__all__ = [
    "Checkpoint",
    "Layout",
    "WeightsError",
    "build",
    "from_live_transformers",
    "ours_to_salesforce",
    "ours_to_transformers",
    "read_checkpoint",
    "salesforce_to_ours",
    "transformers_to_ours",
    "write_checkpoint",
]
