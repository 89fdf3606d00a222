"""The whole model on a CUDA device, on the rooms it chooses there, against the CPU's reference.

Forward, one training step, texts written, `torch.compile`. On Triton's rooms by name, and without a
GPU, interpreted: `tests/kernels/triton/test_model.py`.
"""

from __future__ import annotations

import pytest
import torch
from whole_model import (
    answers,
    assert_agrees,
    gradients,
    images,
    inputs,
    model_of,
    step,
    texts_written,
)

from blip_fast import kernels

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("results", [answers, gradients, texts_written])
def test_agrees_with_the_cpu(results, dtype: torch.dtype) -> None:
    assert_agrees(results, DEVICE, dtype)


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
        expected, memory = (see(images(DEVICE)) for see in (model.see, compiled))
    torch.testing.assert_close(memory.pairs, expected.pairs, rtol=0.05, atol=0.05)


def test_a_training_step_compiles_whole() -> None:
    grads = []
    for compiles in (False, True):
        model = model_of(DEVICE, torch.float32).requires_grad_(True)
        loss = torch.compile(step, fullgraph=True) if compiles else step
        loss(model, *inputs(DEVICE)).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    eager, compiled = grads
    assert eager.keys() == compiled.keys()
    for name, grad in eager.items():
        torch.testing.assert_close(compiled[name], grad, rtol=1e-3, atol=1e-4, msg=name)
