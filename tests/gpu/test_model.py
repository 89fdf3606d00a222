"""The whole model on a CUDA device against the CPU: forward, one training step, `torch.compile`.

Judged by the rule of `tolerance.py`: truth is the CPU's reference in higher precision, and the
error allowed is what the CPU's reference makes in the same dtype.
"""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_close_as_torch, wide
from torch import Tensor
from whole_model import INDEX, TEXTS, images, inputs, model_of, step

from blip_fast import kernels

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def answers(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the model says of images and of texts."""
    model, texts, index = model_of(device, dtype), TEXTS.to(device), INDEX.to(device)
    with torch.no_grad():
        memory = model.see(images(device, dtype))
        assert memory.feature is not None
        result = {
            "memory": memory.pairs,
            "feature": memory.feature,
            "text feature": model.text_feature(texts),
            "match": model.match_logits(texts.starting_with(127), memory, index),
            "losses": model.losses(texts.starting_with(126), memory, index, 0.1),
        }
    return {name: t.cpu() for name, t in result.items()}


def gradients(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    model = model_of(device, dtype).requires_grad_(True)
    step(model, *inputs(device, dtype)).backward()
    return {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("results", [answers, gradients])
def test_agrees_with_the_cpu(results, dtype: torch.dtype) -> None:
    with kernels.use("reference"):
        truth, same = results("cpu", wide(dtype)), results("cpu", dtype)
    actual = results(DEVICE, dtype)
    assert actual.keys() == truth.keys() and len(actual) > 4
    for name, value in actual.items():
        assert_close_as_torch(name, value, same[name], truth[name].to(wide(dtype)))


def test_the_rooms_of_the_gpu_ran() -> None:
    chosen = {
        c.room: c.implementation for c in kernels.choices(torch.device(DEVICE), torch.bfloat16)
    }
    assert chosen["attention"] == chosen["cross_attention"] == "triton"
    assert chosen["decode_attention"] == chosen["add_layernorm"] == "triton"


def test_seeing_compiles_whole() -> None:
    model = model_of(DEVICE, torch.bfloat16)
    compiled = torch.compile(model.see, fullgraph=True)
    with torch.no_grad():
        expected, memory = (see(images(DEVICE, torch.bfloat16)) for see in (model.see, compiled))
    torch.testing.assert_close(memory.pairs, expected.pairs, rtol=0.05, atol=0.05)


def test_a_training_step_compiles_whole() -> None:
    grads = []
    for compiles in (False, True):
        model = model_of(DEVICE, torch.float32).requires_grad_(True)
        loss = torch.compile(step, fullgraph=True) if compiles else step
        loss(model, *inputs(DEVICE, torch.float32)).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    eager, compiled = grads
    assert eager.keys() == compiled.keys()
    for name, grad in eager.items():
        torch.testing.assert_close(compiled[name], grad, rtol=1e-3, atol=1e-4, msg=name)
