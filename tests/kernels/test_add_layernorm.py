"""Every implementation of add_layernorm that can run here, forward and backward."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_close_as_torch, wide
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blip_fast import kernels
from blip_fast.kernels import _ops
from blip_fast.kernels.add_layernorm import reference

needs_native = pytest.mark.skipif(
    not _ops.NATIVE_LOADED, reason="the compiled library is not built (BLIP_FAST_NATIVE=0)"
)
# Widths of one element, around the vector length, of the three models, and beyond one block.
WIDTHS = [1, 3, 16, 17, 31, 64, 192, 768, 1024, 1025, 3000]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6


class Recorder(TorchDispatchMode):
    """The names of our operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "blip_fast":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["avx512bf16", "avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest):
    """One instruction set after the other, forced by name."""
    if not _ops.NATIVE_LOADED:
        pytest.skip("the compiled library is not built (BLIP_FAST_NATIVE=0)")
    before = torch.ops.blip_fast.cpu_isa()
    try:
        torch.ops.blip_fast.set_cpu_isa(request.param)
    except RuntimeError as error:
        pytest.skip(f"this processor has no {request.param}: {error}")
    yield request.param
    torch.ops.blip_fast.set_cpu_isa(before)


def inputs(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, residual = torch.randn(2, rows, width).to(dtype)
    weight, bias = torch.randn(2, width).to(dtype)
    return x, residual, weight, bias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_native_is_as_exact_as_torch(isa: str, width: int, dtype: torch.dtype) -> None:
    x, residual, weight, bias = inputs(5, width, dtype)
    w = wide(dtype)
    with kernels.use("native"):
        total, out = kernels.add_layernorm(x, residual, weight, bias, EPS)
    assert torch.ops.blip_fast.cpu_isa() == isa
    torch.testing.assert_close(total, x + residual, rtol=0, atol=0)
    shape = (width,)
    same = torch.nn.functional.layer_norm(total, shape, weight, bias, EPS)
    truth = torch.nn.functional.layer_norm(total.to(w), shape, weight.to(w), bias.to(w), EPS)
    assert_close_as_torch(f"{isa} {dtype} {width}", out, same, truth)


@pytest.mark.parametrize("scale", [1e-20, 1e4, 1e18])
def test_extreme_values_stay_finite_and_exact(isa: str, scale: float) -> None:
    x, residual, weight, bias = inputs(4, 768, torch.float32)
    x, residual = x * scale + scale, residual * scale
    with kernels.use("native"):
        _, out = kernels.add_layernorm(x, residual, weight, bias, EPS)
    total = (x + residual).double()
    same = torch.nn.functional.layer_norm(x + residual, (768,), weight, bias, EPS)
    truth = torch.nn.functional.layer_norm(total, (768,), weight.double(), bias.double(), EPS)
    assert_close_as_torch(f"scale {scale}", out, same, truth)


def test_no_rows_and_one_row(isa: str) -> None:
    for rows in (0, 1):
        x, residual, weight, bias = inputs(rows, 768, torch.bfloat16)
        with kernels.use("native"):
            total, out = kernels.add_layernorm(x, residual, weight, bias, EPS)
        assert total.shape == out.shape == (rows, 768)


@needs_native
def test_without_residual_and_without_sum() -> None:
    x, residual, weight, bias = inputs(7, 100, torch.float32)
    with kernels.use("native"):
        alone = kernels.layernorm(x, weight, bias, EPS)
        joined = kernels.layernorm_of_sum(x, residual, weight, bias, EPS)
    torch.testing.assert_close(alone, reference.add_layernorm(x, None, weight, bias, EPS)[1])
    torch.testing.assert_close(joined, reference.add_layernorm(x, residual, weight, bias, EPS)[1])


@needs_native
def test_non_contiguous_rows_and_fp32_weights() -> None:
    x = torch.randn(64, 9).bfloat16().t()
    weight, bias = torch.randn(2, 64)
    with kernels.use("native"):
        out = kernels.layernorm(x, weight, bias, EPS)
    truth = reference.add_layernorm(x.float(), None, weight, bias, EPS)[1]
    assert_close_as_torch("non-contiguous", out, truth.bfloat16(), truth)


@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_every_gradient(implementation: str, with_residual: bool) -> None:
    if implementation == "native" and not _ops.NATIVE_LOADED:
        pytest.skip("the compiled library is not built (BLIP_FAST_NATIVE=0)")
    tensors = [t.double() for t in inputs(6, 33, torch.float32)]
    grads = torch.randn(2, 6, 33)

    def gradients(leaves: list[Tensor]) -> list[Tensor]:
        x, residual, weight, bias = (t.requires_grad_() for t in leaves)
        if with_residual:
            total, out = kernels.add_layernorm(x, residual, weight, bias, EPS)
            loss = (total * grads[0].to(x)).sum() + (out * grads[1].to(x)).sum()
            return list(torch.autograd.grad(loss, (x, residual, weight, bias)))
        loss = (kernels.layernorm(x, weight, bias, EPS) * grads[1].to(x)).sum()
        return list(torch.autograd.grad(loss, (x, weight, bias)))

    with kernels.use("reference"):
        truth = gradients([t.clone() for t in tensors])
        same = gradients([t.float() for t in tensors])
    with kernels.use(implementation):
        actual = gradients([t.float() for t in tensors])
    for name, *triple in zip("xrwb", actual, same, truth, strict=False):
        assert_close_as_torch(f"gradient of {name}", *triple)


@needs_native
def test_operator_is_sound_and_compiles_whole() -> None:
    x, residual, weight, bias = inputs(5, 48, torch.float32)
    op = torch.ops.blip_fast.add_layernorm.native
    for arguments in ((x, residual, weight, bias, EPS, True), (x, None, weight, bias, EPS, False)):
        torch.library.opcheck(op, arguments)

    def block(x: Tensor, residual: Tensor) -> Tensor:
        total, out = kernels.add_layernorm(x, residual, weight, bias, EPS)
        return total.relu() + out

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, residual), block(x, residual))


@needs_native
def test_two_runs_are_bit_equal() -> None:
    arguments = inputs(300, 768, torch.bfloat16)
    first = kernels.add_layernorm(*arguments, EPS)
    second = kernels.add_layernorm(*arguments, EPS)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_native
def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    arguments = inputs(2, 8, torch.float32)
    for implementation, expected in (
        ("native", ["blip_fast.add_layernorm.native"]),
        ("reference", []),
    ):
        with kernels.use(implementation), Recorder() as recorder:
            kernels.add_layernorm(*arguments, EPS)
        assert recorder.names == expected
    with kernels.use("reference"), kernels.use("native", "add_layernorm"), Recorder() as recorder:
        kernels.add_layernorm(*arguments, EPS)
    assert recorder.names == ["blip_fast.add_layernorm.native"]


def test_shapes_and_dtypes_are_checked() -> None:
    x, residual, weight, bias = inputs(2, 8, torch.float32)
    with pytest.raises(ValueError, match=r"needs weight and bias of shape \(8,\)"):
        kernels.layernorm(x, weight[:7], bias, EPS)
    with pytest.raises(ValueError, match="must agree"):
        kernels.add_layernorm(x, residual.bfloat16(), weight, bias, EPS)
