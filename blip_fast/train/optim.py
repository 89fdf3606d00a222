"""What is trained, how fast, and by which rule: parameter groups, AdamW, schedules.

Schedules are functions of the step and the epoch alone, so that a resumed run needs no state of
them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import AdamW

from blip_fast.med.blip import MED

if TYPE_CHECKING:
    from blip_fast.train.recipe import Recipe

Schedule = Callable[[int, int], float]

_BLOCK = re.compile(r"vision\.blocks\.(\d+)\.")
_VISION_END = "vision.norm."


def choose_trained(model: MED, freeze_vision: bool) -> None:
    """Say which parameters get a gradient: all, or all but those of the vision transformer."""
    model.requires_grad_(True)
    if freeze_vision:
        model.vision.requires_grad_(False)


def parameter_groups(model: MED, recipe: Recipe) -> list[dict[str, Any]]:
    """The trained parameters, grouped by weight decay and by share of the learning rate.

    The reference decays every parameter; with `decay_norm_and_bias=False` vectors are left out,
    as in LAVIS. With `vision_layer_decay` d, the vision transformer's patch embedding learns at
    d^depth of the rate and its block b, counted from 0, at d^(depth - b - 1).

    Returns:
        Groups for an optimizer; `lr_scale` is what to multiply the schedule's rate by.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = recipe.decay_norm_and_bias or parameter.ndim >= 2
            decay = recipe.weight_decay if decays else 0.0
            scale = recipe.vision_layer_decay ** _layers_above(name, model.config.vision.depth)
            groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def adamw(model: MED, recipe: Recipe) -> AdamW:
    """torch's fused AdamW over the trained parameters, sharded or not.

    Its moments are there from the start, so that a checkpoint can be read into them.
    """
    optimizer = AdamW(parameter_groups(model, recipe), lr=recipe.init_lr, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def set_rate(optimizer: AdamW, rate: float) -> None:
    """Set the learning rate of every group from the schedule's."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def schedule(recipe: Recipe, total_steps: int) -> Schedule:
    """The learning rate as a function of (optimizer step of the run, epoch).

    "step", pretraining's: even growth from `warmup_lr` to `init_lr` over the first `warmup_steps`
    steps, within the first epoch; then max(min_lr, init_lr * lr_decay_rate^epoch).
    "cosine", finetuning's: half a cosine from `init_lr` to `min_lr`, one value an epoch.
    "cosine_steps": the same growth, then half a cosine down to `min_lr`, one value a step.
    The first two are those of the reference's utils.py.

    Args:
        total_steps: optimizer steps of the whole run; only "cosine_steps" looks at it.

    Raises:
        ValueError: where there is no such schedule.
    """
    schedules: dict[str, Schedule] = {
        "step": lambda step, epoch: _by_epoch(recipe, step, epoch),
        "cosine": lambda step, epoch: _cosine(recipe, epoch / recipe.max_epoch),
        "cosine_steps": lambda step, epoch: _by_step(recipe, step, total_steps),
    }
    if recipe.schedule not in schedules:
        raise ValueError(
            f"schedule is {recipe.schedule!r}; it must be one of {', '.join(schedules)}"
        )
    return schedules[recipe.schedule]


def _by_epoch(recipe: Recipe, step: int, epoch: int) -> float:
    if epoch == 0:
        return _warm_up(recipe, step)
    return max(recipe.min_lr, recipe.init_lr * recipe.lr_decay_rate**epoch)


def _by_step(recipe: Recipe, step: int, total_steps: int) -> float:
    if step < recipe.warmup_steps:
        return _warm_up(recipe, step)
    falling = max(1, total_steps - recipe.warmup_steps)
    return _cosine(recipe, min(1.0, (step - recipe.warmup_steps) / falling))


def _warm_up(recipe: Recipe, step: int) -> float:
    if step >= recipe.warmup_steps:
        return recipe.init_lr
    return recipe.warmup_lr + (recipe.init_lr - recipe.warmup_lr) * step / recipe.warmup_steps


def _cosine(recipe: Recipe, done: float) -> float:
    """From `init_lr` at 0 to `min_lr` at 1."""
    height = (1 + math.cos(math.pi * done)) / 2
    return recipe.min_lr + (recipe.init_lr - recipe.min_lr) * height


def _layers_above(name: str, depth: int) -> int:
    """How many vision layers lie above a parameter; none above what is not vision's."""
    if not name.startswith("vision.") or name.startswith(_VISION_END):
        return 0
    block = _BLOCK.match(name)
    return depth - 1 - int(block[1]) if block else depth
