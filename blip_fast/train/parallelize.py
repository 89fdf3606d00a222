"""Parallelism put on an objective from outside, in a stated order; the model knows of none.

1. Activation checkpointing: a layer's forward is replaced by one that keeps its inputs alone. It
   goes first, so that what sharding hooks around a layer's call stays outside of what is repeated.
2. FSDP2, from the inside out: each vision block, the vision transformer, the temperature, and what
   remains as one unit, the root. Text encoder and decoder share most of their tensors, and one
   tensor can live in one unit only. Momentum encoders are cut in the same way, so that their
   shards lie beside those that they follow.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from blip_fast.kernels.linear.onednn import changes_unseen
from blip_fast.med.blip import MED
from blip_fast.med.layers import Linear
from blip_fast.train.objective import Objective
from blip_fast.train.processes import ensure_group, world

if TYPE_CHECKING:
    from blip_fast.train.recipe import Recipe


def parallelize(objective: Objective[Any], recipe: Recipe, device: torch.device) -> None:
    """Make an objective ready for its processes, in place; its parameters are in fp32 and stay so.

    With one process in float32 nothing is sharded. In bfloat16 sharding also keeps the fp32
    masters, so one process is a group of its own.

    Args:
        objective: on `device`; which parameters are trained is settled.
    """
    checkpoint_activations(objective.model, recipe)
    if world() > 1 or recipe.dtype == "bfloat16":
        shard(objective, recipe.dtype, device)


def checkpoint_activations(model: MED, recipe: Recipe) -> None:
    """Recompute layers in the backward pass instead of keeping what is inside them.

    With `vit_grad_ckpt` the last `vit_ckpt_layer` vision blocks, as in the reference; with
    `text_grad_ckpt` all text layers. Dropout repeats its draws.
    """
    layers: list[nn.Module] = []
    if recipe.vit_grad_ckpt:
        blocks = list(model.vision.blocks)
        layers += blocks[max(0, len(blocks) - recipe.vit_ckpt_layer) :]
    if recipe.text_grad_ckpt:
        for name in ("text_encoder", "text_decoder"):
            if hasattr(model, name):
                layers += getattr(model, name).layers
    for layer in layers:
        # The module stays itself, so that no parameter changes its name.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def shard(objective: Objective[Any], dtype: str, device: torch.device) -> None:
    """FSDP2 in the order above; bfloat16 computes, gradients are summed in float32."""
    ensure_group(device.type)
    mesh = init_device_mesh(device.type, (world(),))
    full = MixedPrecisionPolicy()
    policy = full
    if dtype == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for model in [module for module in objective.modules() if isinstance(module, MED)]:
        for block in model.vision.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model.vision, mesh=mesh, mp_policy=policy)
        if hasattr(model, "temperature"):
            fully_shard(model.temperature, mesh=mesh, mp_policy=full)
    fully_shard(objective, mesh=mesh, mp_policy=policy)
    for module in objective.modules():
        if isinstance(module, Linear):
            _announce_gathering(module)
    # Said of vision blocks, whose outputs nobody changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def synchronise_gradients(objective: Objective[Any], wanted: bool) -> None:
    """Whether the next backward pass sums gradients over processes, or keeps its own."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(wanted)


def _announce_gathering(layer: Linear) -> None:
    """At a layer's first call, when its gathered weight exists, say that it changes unseen."""

    def announce(*_: object) -> None:
        changes_unseen(layer.weight)
        handle.remove()

    handle = layer.register_forward_pre_hook(announce)
