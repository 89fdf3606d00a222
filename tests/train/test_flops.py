"""FLOPs counted from shapes, against published figures and torch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import tiny_config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import CPU, Examples, tiny_objective, tiny_recipe

from blip_fast import kernels
from blip_fast.config import VisionConfig
from blip_fast.med.blip import MED
from blip_fast.train.flops import FlopCounter, peak_flops
from blip_fast.train.parallelize import checkpoint_activations


def test_vit_base() -> None:
    """17.58 GMACs at 224 pixels (timm's table for vit_base_patch16_224, without its classifier)."""
    config = replace(tiny_config("caption"), vision=VisionConfig(image_size=224))
    model = MED(config).requires_grad_(False)
    counter = FlopCounter(nn.ModuleDict({"model": model}))
    with torch.no_grad(), counter.counting():
        model.vision(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert counter.total == pytest.approx(2 * 17.58e9, rel=0.005)


@pytest.mark.parametrize("task", ["caption", "pretrain"])
def test_as_torch_counts(task: str) -> None:
    """A step with its gradients; torch also counts similarities, and causal halves in full."""
    objective = tiny_objective(task)
    objective.model.requires_grad_(True)
    counter, theirs = FlopCounter(objective), FlopCounterMode(display=False)
    batch = next(Examples(objective, 4).batches(0))
    with kernels.use("reference"), sdpa_kernel(SDPBackend.MATH), theirs:
        with counter.counting():
            losses = objective(batch, 0.0)
        sum(losses.values()).backward()
    assert counter.total == pytest.approx(theirs.get_total_flops(), rel=0.01)


def test_recomputing_and_looking_do_not_count() -> None:
    totals = []
    for recompute in (False, True):
        objective = tiny_objective("caption")
        recipe = tiny_recipe(vit_grad_ckpt=recompute, vit_ckpt_layer=2, text_grad_ckpt=recompute)
        checkpoint_activations(objective.model.requires_grad_(True), recipe)
        counter = FlopCounter(objective)
        batch = next(Examples(objective, 2).batches(0))
        with counter.counting():
            losses = objective(batch, 0.0)
        sum(losses.values()).backward()
        objective(batch, 0.0)
        totals.append(counter.total)
    assert totals[0] == totals[1] > 0


def test_frozen_vision_counts_a_third() -> None:
    """No gradient of weights or inputs is computed for it."""
    totals = []
    for trained in (True, False):
        model = MED(tiny_config("caption"))
        model.vision.requires_grad_(trained)
        counter = FlopCounter(nn.ModuleDict({"model": model}))
        with counter.counting():
            model.vision(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        totals.append(counter.total)
    # All but the patch embedding, whose input is an image that needs no gradient either.
    embedding = 2 * (2 * 16) * (3 * 8 * 8) * 192
    assert totals[0] == 3 * totals[1] - embedding


def test_peak_of_this_processor() -> None:
    """No product is faster than the peak that was measured, by far."""
    assert 1e9 < peak_flops(CPU, torch.float32) < 1e14


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12)],
)
def test_peak_of_a_known_gpu(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == peak
