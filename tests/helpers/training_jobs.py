"""What the tests of training run in other processes: functions of a module, so that they can be
named there. Each leaves its results in files."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training import CPU, Examples, tiny_objective, tiny_recipe

from blip_fast.train import checkpoint
from blip_fast.train.checkpoint import Checkpointer, Loaded, tensors_of
from blip_fast.train.loop import train
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


@dataclass(frozen=True)
class Faults:
    """What goes wrong in a process, by the number of steps it has begun itself.

    Attributes:
        kill_at: SIGKILL at the start of this step.
        kill_in_save: SIGKILL while this save is being written in the background: its data are
            on the disk, its mark is not.
        terminate_at: SIGTERM to the first process at the start of this step.
        nan: what becomes NaN where the batch holds "poison": "loss" or "gradient".
    """

    kill_at: int | None = None
    kill_in_save: int | None = None
    terminate_at: int | None = None
    nan: str = ""

    def arm(self, objective: Objective[Any]) -> None:
        begun, saved = itertools.count(1), itertools.count(1)
        before_step, sums_of = objective.before_step, checkpoint._sums_of

        def begin() -> None:
            step = next(begun)
            if step == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == self.terminate_at and rank() == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            before_step()

        def finish(folder: Path) -> Any:
            if next(saved) == self.kill_in_save:
                os.kill(os.getpid(), signal.SIGKILL)
            return sums_of(folder)

        def spoil(objective: nn.Module, inputs: Any, losses: dict[str, Tensor]) -> Any:
            if self.nan and "poison" in inputs[0].keys:
                (name, loss), *others = losses.items()
                if self.nan == "gradient":
                    loss.register_hook(lambda grad: grad * torch.nan)
                else:
                    loss = loss * torch.nan
                return {name: loss, **dict(others)}
            return losses

        objective.before_step = begin  # type: ignore[method-assign]
        if self.kill_in_save is not None:
            checkpoint._sums_of = finish
        objective.register_forward_hook(spoil)


def run(
    output: Path,
    task: str,
    changes: dict[str, Any],
    faults: Faults | None = None,
    poison: int | None = None,
) -> None:
    """A whole run, or what is left of it."""
    with processes("cpu") as device:
        recipe = tiny_recipe(**changes)
        objective = tiny_objective(task, recipe.text_dropout)
        (faults or Faults()).arm(objective)
        examples = Examples(objective, recipe.batch_size, 13, rank(), world(), poison)
        train(recipe, output, objective, examples, objective.tokenizer, device)


def run_and_tell(file: Path, *args: Any) -> None:
    """The same, with what it raises in a file for each process."""
    try:
        run(*args)
    except ValueError as error:
        file.with_suffix(f".{os.environ.get('RANK', '0')}").write_text(str(error))
        raise SystemExit(1) from None
