"""Sharded and checkpointed training against plain training: same names, same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from training import Examples, run_processes, tiny_objective, tiny_recipe
from training_jobs import step_by_hand, train_and_keep, train_by_hand, whole

from blip_fast.med.blip import MED
from blip_fast.train.optim import choose_trained
from blip_fast.train.parallelize import checkpoint_activations

STEPS = 3


@pytest.fixture
def one_process_group() -> Iterator[None]:
    """Leave no group behind."""
    yield
    dist.destroy_process_group()


def kept(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)


def assert_near(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor], rel: float) -> None:
    """Every tensor within `rel` of its largest value."""
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        error = (tensor - other[name]).abs().max()
        assert error <= rel * other[name].abs().max(), f"{name}: {error}"


@pytest.mark.parametrize(
    "changes",
    [
        {"vit_grad_ckpt": True, "vit_ckpt_layer": 1, "text_grad_ckpt": True},
        {"accumulate": 2, "clip_grad_norm": 0.5, "freeze_vision": True},
    ],
    ids=["checkpointed", "accumulated-clipped-frozen"],
)
def test_two_processes_match_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    alone = {name: value for name, value in changes.items() if "ckpt" not in name}
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    train_and_keep(one, "caption", STEPS, {**alone, "batch_size": 4})
    assert run_processes(train_and_keep, 2, two, "caption", STEPS, changes) == [0, 0]
    assert_near(kept(two), kept(one), 1e-5)
    start = dict(tiny_objective("caption").named_parameters())
    moved = {name for name, tensor in kept(one).items() if not torch.equal(tensor, start[name])}
    frozen = (
        {n for n in start if n.startswith("model.vision.")} if "freeze_vision" in changes else set()
    )
    assert moved == start.keys() - frozen


def test_bfloat16_follows_float32(tmp_path: Path) -> None:
    """Masters stay in float32, and what is learned goes the same way."""
    changes = {"dtype": "bfloat16", "accumulate": 2, "clip_grad_norm": 0.5}
    full, half = tmp_path / "full.pt", tmp_path / "half.pt"
    train_and_keep(full, "caption", STEPS, {**changes, "dtype": "float32", "batch_size": 4})
    assert run_processes(train_and_keep, 2, half, "caption", STEPS, changes) == [0, 0]
    start = dict(tiny_objective("caption").named_parameters())
    flat = []
    for state in (kept(full), kept(half)):
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        flat.append(torch.cat([(state[name] - start[name]).flatten() for name in start]))
    assert torch.cosine_similarity(*flat, dim=0) > 0.99
    assert not torch.equal(*flat)


def test_bfloat16_pretraining(one_process_group: None) -> None:
    """Momentum encoders follow what is trained, shard by shard, and compute with what they are
    now; the temperature is used in full precision."""
    objective, recipe = tiny_objective("pretrain"), tiny_recipe(dtype="bfloat16", batch_size=8)
    momentum = objective.contrast.model
    before = {name: p.detach().clone() for name, p in momentum.named_parameters()}
    optimizer = train_by_hand(objective, recipe, 0)
    temperatures = []
    objective.model.temperature.register_forward_hook(lambda *call: temperatures.append(call[-1]))
    for step in range(2 * STEPS):
        online = {name: whole(p) for name, p in objective.model.named_parameters()}
        step_by_hand(objective, optimizer, recipe, 1, step)
        for name, parameter in momentum.named_parameters():
            before[name].lerp_(online[name], 0.1)
            torch.testing.assert_close(whole(parameter), before[name])
        plain = MED(objective.model.config).bfloat16()
        plain.load_state_dict(before, strict=False)
        batch = next(Examples(objective, 8, 1000).batches(0, 8 * step))
        queue, newest = objective.contrast.queue, torch.arange(8 * step, 8 * step + 8) % 12
        with torch.no_grad():
            images, texts = plain.vision(batch.images), plain.text_feature(batch.text)
            assert torch.equal(queue.images[newest], plain.image_feature(images))
            assert torch.equal(queue.texts[newest], texts)
    assert (
        all(t.dtype == torch.float32 and t > 0 for t in temperatures)
        and len(temperatures) == 2 * STEPS
    )


def test_recomputing_changes_nothing() -> None:
    """Dropout repeats its draws, names stay, and less is kept for the backward pass."""
    results = []
    for recipe in (
        tiny_recipe(),
        tiny_recipe(vit_grad_ckpt=True, vit_ckpt_layer=2, text_grad_ckpt=True),
    ):
        objective = tiny_objective("pretrain", text_dropout=0.2)
        names = list(objective.state_dict())
        choose_trained(objective.model, freeze_vision=False)
        checkpoint_activations(objective.model, recipe)
        assert list(objective.state_dict()) == names
        torch.manual_seed(5)
        kept_bytes = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept_bytes
            kept_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = objective(next(Examples(objective, 4).batches(0)), 0.5)
        sum(losses.values()).backward()
        grads = {n: p.grad for n, p in objective.model.named_parameters() if p.grad is not None}
        results.append((grads, kept_bytes))
    (plain, plain_bytes), (recomputed, fewer_bytes) = results
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert fewer_bytes < plain_bytes / 2
