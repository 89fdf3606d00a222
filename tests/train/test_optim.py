"""Parameter groups and schedules, against the reference's formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from factories import tiny_config
from training import tiny_recipe

from blip_fast.med.blip import MED
from blip_fast.train.optim import adamw, choose_trained, parameter_groups, schedule, set_rate


def grouped(model: MED, recipe: object) -> dict[str, tuple[float, float]]:
    """Name of a parameter -> its weight decay and share of the learning rate."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["weight_decay"], group["lr_scale"])
        for group in parameter_groups(model, recipe)
        for parameter in group["params"]
    }


def test_everything_decays_as_in_the_reference() -> None:
    model = MED(tiny_config("pretrain"))
    groups = grouped(model, tiny_recipe())
    assert groups.keys() == {name for name, _ in model.named_parameters()}
    assert set(groups.values()) == {(0.05, 1.0)}


def test_vectors_can_be_left_without_decay() -> None:
    model = MED(tiny_config("caption"))
    groups = grouped(model, tiny_recipe(decay_norm_and_bias=False))
    for name, parameter in model.named_parameters():
        assert groups[name][0] == (0.05 if parameter.ndim >= 2 else 0.0), name


def test_vision_layers_learn_more_slowly_from_below() -> None:
    groups = grouped(MED(tiny_config("caption")), tiny_recipe(vision_layer_decay=0.5))
    scales = {name: scale for name, (_, scale) in groups.items()}
    assert scales["vision.patch_embed.weight"] == scales["vision.position"] == 0.25
    assert scales["vision.blocks.0.qkv.weight"] == 0.5
    assert scales["vision.blocks.1.fc2.bias"] == scales["vision.norm.weight"] == 1.0
    assert scales["text_decoder.layers.0.mlp.fc1.weight"] == 1.0


def test_frozen_vision_is_not_trained() -> None:
    model = MED(tiny_config("caption")).requires_grad_(False)
    choose_trained(model, freeze_vision=True)
    names = grouped(model, tiny_recipe()).keys()
    assert names and not any(name.startswith("vision.") for name in names)
    choose_trained(model, freeze_vision=False)
    assert len(grouped(model, tiny_recipe())) == len(list(model.named_parameters()))


def test_rate_reaches_every_group_by_its_share() -> None:
    model = MED(tiny_config("caption"))
    optimizer = adamw(model, tiny_recipe(vision_layer_decay=0.5))
    set_rate(optimizer, 8.0)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [2.0, 4.0, 8.0]
    assert all(group["fused"] for group in optimizer.param_groups)


def test_first_step_is_adamws() -> None:
    """Moments that are there from the start change nothing."""
    model = MED(tiny_config("caption"))
    parameter = model.vision.norm.weight
    before = parameter.detach().clone()
    optimizer = adamw(model, tiny_recipe(init_lr=0.1))
    parameter.grad = torch.full_like(parameter, -3.0)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before * (1 - 0.1 * 0.05) + 0.1)


def test_step_schedule() -> None:
    """utils.warmup_lr_schedule in epoch 0, utils.step_lr_schedule after it."""
    rate = schedule(tiny_recipe(init_lr=3e-4, min_lr=1e-6, warmup_steps=3000), 0)
    for step in (0, 1, 1500, 2999, 3000, 5000):
        warm = min(3e-4, 1e-6 + (3e-4 - 1e-6) * step / 3000)
        assert rate(step, 0) == pytest.approx(warm, rel=1e-12)
    # Epoch 1 comes with whatever step: a short first epoch leaves the growth unfinished.
    assert rate(10, 1) == pytest.approx(3e-4 * 0.9)
    assert rate(10, 7) == pytest.approx(3e-4 * 0.9**7)
    assert rate(10, 100) == 1e-6
    assert schedule(tiny_recipe(warmup_steps=0), 0)(0, 0) == 1e-3


def test_cosine_schedule() -> None:
    rate = schedule(tiny_recipe(schedule="cosine", init_lr=1e-5, min_lr=1e-7, max_epoch=5), 0)
    for epoch in range(5):
        expected = (1e-5 - 1e-7) * 0.5 * (1 + math.cos(math.pi * epoch / 5)) + 1e-7
        assert rate(0, epoch) == rate(999, epoch) == pytest.approx(expected, rel=1e-12)


def test_cosine_by_step() -> None:
    recipe = tiny_recipe(schedule="cosine_steps", init_lr=1.0, warmup_lr=0.5, warmup_steps=10)
    rate = schedule(recipe, 110)
    assert [rate(0, 0), rate(5, 0), rate(10, 0)] == pytest.approx([0.5, 0.75, 1.0])
    assert rate(60, 3) == pytest.approx(0.5)
    assert rate(110, 4) == pytest.approx(0.0) == rate(500, 9)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="'linear'; it must be one of step, cosine, cosine_steps"):
        schedule(tiny_recipe(schedule="linear"), 0)
