"""`torch.compile` takes the model whole, our operators in its graphs, and changes no result."""

from __future__ import annotations

import pytest
import torch
from forcing import needs_native
from whole_model import compiled, images, inputs, model_of, step


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_seeing(dtype: torch.dtype) -> None:
    model, pixels = model_of("cpu", dtype), images("cpu")
    see, names = compiled(model.see)
    with torch.no_grad():
        first = see(pixels).pairs
        assert first.equal(model.see(pixels).pairs)
        assert {"blip_fast.attention.native", "blip_fast.add_layernorm.native"} <= names
        # Rooms may keep packed copies of weights; a compiled model must see new weights, too.
        model.vision.blocks[0].fc1.weight.mul_(2)
        second = see(pixels).pairs
        assert second.equal(model.see(pixels).pairs)
        assert not second.equal(first)


@needs_native
def test_a_training_step() -> None:
    model = model_of("cpu", torch.float32).requires_grad_(True)
    whole, names = compiled(step)
    expected = step(model, *inputs("cpu"))
    expected.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    loss = whole(model, *inputs("cpu"))
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert {
        "blip_fast.attention.native",
        "blip_fast.attention_backward.native",
        "blip_fast.cross_attention.native",
        "blip_fast.cross_attention_backward.native",
        "blip_fast.contrastive.chunked",
        "blip_fast.contrastive_backward.chunked",
        "blip_fast.linear_cross_entropy.chunked",
        "blip_fast.linear_cross_entropy_backward.chunked",
    } <= names
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (grads[name] is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, grads[name], msg=name)
