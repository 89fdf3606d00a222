"""State dicts from one layout to another; the names come from `table`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.med.heads import Temperature
from blip_fast.med.weights.check import check_state
from blip_fast.med.weights.table import Layout, entries, is_training_only


def to_ours(state: Mapping[str, Tensor], config: BlipConfig, layout: Layout) -> dict[str, Tensor]:
    """Our state dict out of one in `layout`; training-only tensors are passed over.

    Storage is shared where nothing is fused.

    Raises:
        WeightsError: listing all tensors that are missing, unexpected, of another shape or not
            of floating point, hold NaN or infinity, or are tied and yet differ.
    """
    table = entries(config, layout)
    state = {name: t for name, t in state.items() if not is_training_only(name)}
    check_state(state, table)
    ours = {}
    for entry in table:
        parts = [next(state[n] for n in names if n in state) for names in entry.parts]
        if parts:
            fused = parts[0] if len(parts) == 1 else torch.cat(parts)
            ours[entry.ours] = fused.reshape(entry.shape)
        else:
            # transformers keeps no temperature: this one BLIP's training starts from.
            ours[entry.ours] = torch.tensor([Temperature.START])
    return ours


def from_ours(state: Mapping[str, Tensor], config: BlipConfig, layout: Layout) -> dict[str, Tensor]:
    """The inverse of `to_ours`: tied tensors under every name in Salesforce's layout, else once.

    Storage is shared: the parts of a fused tensor are views of it.
    """
    theirs = {}
    for entry in entries(config, layout):
        tensor = state[entry.ours]
        pieces = tensor.chunk(len(entry.parts)) if len(entry.parts) > 1 else [tensor]
        for names, piece in zip(entry.parts, pieces, strict=False):
            for name in names if layout == "salesforce" else names[:1]:
                theirs[name] = piece.reshape(entry.part_shape)
    return theirs


def salesforce_to_ours(state: Mapping[str, Tensor], config: BlipConfig) -> dict[str, Tensor]:
    """`to_ours` from the layout of Salesforce's files."""
    return to_ours(state, config, "salesforce")


def ours_to_salesforce(state: Mapping[str, Tensor], config: BlipConfig) -> dict[str, Tensor]:
    """`from_ours` to the layout of Salesforce's files."""
    return from_ours(state, config, "salesforce")


def transformers_to_ours(state: Mapping[str, Tensor], config: BlipConfig) -> dict[str, Tensor]:
    """`to_ours` from the layout of the transformers library."""
    return to_ours(state, config, "transformers")


def ours_to_transformers(state: Mapping[str, Tensor], config: BlipConfig) -> dict[str, Tensor]:
    """`from_ours` to the layout of the transformers library."""
    return from_ours(state, config, "transformers")
