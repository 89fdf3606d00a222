"""The two linears of a transformer's layer: value, gradients, and what they keep."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_close_as_torch, wide
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels

NAMES = ("x", "weight1", "bias1", "weight2", "bias2")


def arguments(rows: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    shapes = [(*rows, 96), (160, 96), (160,), (96, 160), (96,)]
    return [(torch.randn(shape) / shape[-1] ** 0.5).to(dtype).requires_grad_() for shape in shapes]


def plain(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(1,), (3, 7), (0,)])
def test_value_and_every_gradient(rows: tuple[int, ...], dtype: torch.dtype) -> None:
    low = arguments(rows, dtype)
    high = [t.detach().to(wide(dtype)).requires_grad_() for t in low]
    outs = [kernels.mlp(*low), plain(*low), plain(*high)]
    weight = torch.randn(outs[0].shape)
    assert_close_as_torch("value", *(out.detach() for out in outs))
    grads = [
        torch.autograd.grad((out * weight.to(out.dtype)).sum(), inputs)
        for out, inputs in zip(outs, (low, low, high), strict=True)
    ]
    for name, *values in zip(NAMES, *grads, strict=True):
        assert_close_as_torch(name, *values)


def test_frozen_tensors_get_no_gradient_and_the_others_theirs() -> None:
    x, weight1, bias1, weight2, bias2 = arguments((4,), torch.float32)
    frozen = weight1.detach()
    out = kernels.mlp(x, frozen, bias1, weight2, bias2)
    expected = plain(x, frozen, bias1, weight2, bias2)
    leaves = (x, bias1, weight2, bias2)
    found, truth = (torch.autograd.grad(o.sum(), leaves) for o in (out, expected))
    for a, b in zip(found, truth, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_what_comes_after_the_gelu_is_not_kept() -> None:
    kept: list[tuple[int, ...]] = []
    tensors = arguments((5,), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        kernels.mlp(*tensors)
        once = sorted(kept)
        kept.clear()
        plain(*tensors)
    assert once.count((5, 160)) == 1 and kept.count((5, 160)) == 2


def test_it_compiles_whole() -> None:
    tensors = arguments((4,), torch.float32)
    compiled = torch.compile(kernels.mlp, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*tensors).square().sum(), tensors)
    expected = torch.autograd.grad(plain(*tensors).square().sum(), tensors)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
