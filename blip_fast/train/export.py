"""The trained model as a folder that everything else reads, replaced whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from blip_fast.med.blip import MED
from blip_fast.med.weights import write_checkpoint
from blip_fast.text import Tokenizer
from blip_fast.train.processes import barrier, rank


def export(model: MED, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model, sharded or not, in our layout and in float32; all processes take part.

    An older folder is there until the new one is complete.
    """
    state = {name: _whole(parameter) for name, parameter in model.named_parameters()}
    if rank() == 0:
        with torch.device("meta"):
            exported = MED(model.config)
        # Not strict: shared parameters have several names in a module and one here.
        exported.load_state_dict(state, strict=False, assign=True)
        new, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        write_checkpoint(exported, tokenizer, new, "blip_fast")
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    barrier()


def _whole(parameter: Tensor) -> Tensor:
    """All shards of a parameter on the host of the first process."""
    whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    whole = whole.detach()
    return whole.cpu() if rank() == 0 else whole[:0]
