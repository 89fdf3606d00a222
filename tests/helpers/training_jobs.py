"""What the tests of training run in other processes: functions of a module, so that they can be
named there. Each leaves its results in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training import CPU, Examples, tiny_objective, tiny_recipe

from blip_fast.train.checkpoint import Checkpointer, Loaded, tensors_of
from blip_fast.train.objective import Objective
from blip_fast.train.optim import adamw, choose_trained
from blip_fast.train.parallelize import parallelize, synchronise_gradients
from blip_fast.train.processes import processes, rank, world


def whole(tensor: Tensor) -> Tensor:
    """A copy of all shards."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def train_by_hand(
    objective: Objective[Any], recipe: Any, steps: int, first: int = 0
) -> torch.optim.AdamW:
    """A few steps in the plainest loop, each process on its part of the same examples."""
    choose_trained(objective.model, recipe.freeze_vision)
    parallelize(objective, recipe, CPU)
    optimizer = adamw(objective.model, recipe)
    for group in optimizer.param_groups:
        # Large, or AdamW would make whole steps of gradients that are nothing but rounding.
        group["eps"] = 1e-2
    step_by_hand(objective, optimizer, recipe, steps, first)
    return optimizer


def step_by_hand(
    objective: Objective[Any],
    optimizer: torch.optim.AdamW,
    recipe: Any,
    steps: int,
    first: int = 0,
) -> None:
    examples = Examples(objective, recipe.batch_size, 1000, rank(), world())
    per_step = recipe.accumulate * recipe.batch_size * world()
    for step in range(first, first + steps):
        batches = examples.batches(0, step * per_step)
        objective.before_step()
        for micro in range(recipe.accumulate):
            synchronise_gradients(objective, micro == recipe.accumulate - 1)
            losses = objective(next(batches), 0.0)
            (sum(losses.values()) / recipe.accumulate).backward()
        if recipe.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(objective.model.parameters(), recipe.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def train_and_keep(file: Path, task: str, steps: int, changes: dict[str, Any]) -> None:
    """Train by hand and keep all parameters and buffers, by name."""
    with processes("cpu"):
        objective = tiny_objective(task)
        train_by_hand(objective, tiny_recipe(**changes), steps)
        named = [*objective.named_parameters(), *objective.named_buffers()]
        state = {name: whole(tensor) for name, tensor in named}
        if rank() == 0:
            torch.save(state, file)


def go_on(folder: Path, file: Path, steps: int, first: int, changes: dict[str, Any]) -> None:
    """Take the newest checkpoint where there is one, train, save; keep what was loaded and made."""
    with processes("cpu"):
        objective, recipe = tiny_objective("pretrain"), tiny_recipe(**changes)
        optimizer = train_by_hand(objective, recipe, 0)
        tensors = tensors_of(objective, optimizer)
        saver = Checkpointer(folder, 2, {"task": "pretrain"})
        loaded = saver.load_latest(tensors) or Loaded(0, {})
        before = {name: whole(tensor) for name, tensor in tensors.items()}
        step_by_hand(objective, optimizer, recipe, steps, first)
        saver.save(first + steps, tensors, {"from": loaded.step})
        after = {name: whole(tensor) for name, tensor in tensors.items()}
        # The copy was taken by then: what comes later must not reach the disk.
        step_by_hand(objective, optimizer, recipe, 1, first)
        saver.close()
        if rank() == 0:
            torch.save({"before": before, "after": after, "loaded": loaded.step}, file)
