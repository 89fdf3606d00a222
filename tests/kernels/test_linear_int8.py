"""Every implementation of linear_int8 against the definition, and the int8 weight by itself."""

from __future__ import annotations

import pytest
import torch
from forcing import threads
from gate import Case, Gate, forced, runs
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.kernels.linear_int8.weight import QuantizedWeight, quantise_rows


def defined(high: torch.dtype, weight: QuantizedWeight, gelu: bool, x: Tensor, *rest: Tensor):
    """Whole numbers as the room makes them, their exact sums, and then each step in `high`."""
    integers, scales = quantise_rows(x)
    sums = integers.double() @ weight.integers().double().T
    exact = sums * weight.scales.double() * scales.double()
    y = exact.to(high)
    if rest:
        y = y + rest[0].to(high)
    if gelu:
        y = F.gelu(y)
    return y + rest[1].to(high) if len(rest) > 1 else y


def case(
    rows: int,
    k: int,
    n: int,
    dtype: torch.dtype,
    gelu: bool = True,
    rest: int = 2,
    largest: float = 1.0,
) -> Case:
    weight = QuantizedWeight.of(torch.randn(n, k))
    x = torch.randn(rows, k)
    if rows and k:
        x[0, 0] = 4.0  # rows of unlike scales
    x = (x * largest * torch.rand(rows, 1)).to(dtype)
    others = {"bias": torch.randn(n).to(dtype), "residual": torch.randn(rows, n).to(dtype)}
    named = {"x": x, **dict(list(others.items())[:rest])}
    activation = "gelu" if gelu else None
    return Case(
        call=lambda x, *more: kernels.linear_int8(
            x, weight, *more[:1] or (None,), activation=activation, residual=(*more, None, None)[1]
        ),
        formula=lambda high, *tensors: defined(high, weight, gelu, *tensors),
        tensors=named,
        gradients=(),
    )


def named_cases() -> dict:
    sizes = {
        "one of each": (1, 1, 1),
        "odd": (7, 97, 45),
        "around a tile and a panel": (13, 63, 33),
        "one row": (1, 768, 70),
        "no rows": (0, 24, 8),
        "no columns": (3, 0, 5),
        "several blocks of rows": (95, 4100, 35),
    }
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, size in sizes.items():
            made[f"{name}, {dtype}"] = lambda s=size, d=dtype: case(*s, d)
        made[f"alone, {dtype}"] = lambda d=dtype: case(6, 33, 20, d, gelu=False, rest=0)
        made[f"with a bias, {dtype}"] = lambda d=dtype: case(6, 33, 20, d, gelu=False, rest=1)
        made[f"huge, {dtype}"] = lambda d=dtype: case(4, 65, 9, d, False, 1, largest=1e34)
        made[f"tiny, {dtype}"] = lambda d=dtype: case(4, 65, 9, d, False, 0, largest=1e-36)
    return made


class TestLinearInt8(Gate):
    room = "linear_int8"
    cases = named_cases()
    few = ("odd, torch.float32", "one row, torch.bfloat16")


@pytest.mark.parametrize("run", runs("linear_int8"), ids=str)
def test_the_whole_numbers_are_the_same_everywhere(run) -> None:
    """With scales of one and whole numbers in x, sums come out as they are; ties included."""
    levels = torch.arange(-127, 128).float()
    x = torch.stack([levels, levels.flip(0), levels.roll(64) / 2])
    x[2, 0] = 127.0
    weight = QuantizedWeight.of(torch.randint(-127, 128, (40, 255)).float())
    with forced(run), torch.no_grad():
        actual = kernels.linear_int8(x, weight)
    expected = x.round().double() @ weight.integers().double().T * weight.scales.double()
    torch.testing.assert_close(actual.double(), expected, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("run", runs("linear_int8"), ids=str)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_spoils_its_own_row_alone(run, bad: float) -> None:
    x, weight = torch.randn(3, 50), QuantizedWeight.of(torch.randn(20, 50))
    x[1, 17] = bad
    with forced(run):
        y = kernels.linear_int8(x, weight)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("run", runs("linear_int8"), ids=str)
def test_threads_share_rows_or_panels(run) -> None:
    weight = QuantizedWeight.of(torch.randn(2100, 512))
    few, many = torch.randn(5, 512), torch.randn(1030, 512)
    with forced(run):
        with threads(1):
            alone = kernels.linear_int8(few, weight), kernels.linear_int8(many, weight)
        with threads(3):
            shared = kernels.linear_int8(few, weight), kernels.linear_int8(many, weight)
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = torch.randn(40, 96), QuantizedWeight.of(torch.randn(50, 96))
    assert torch.equal(kernels.linear_int8(x, weight)[17], kernels.linear_int8(x[17], weight))


def test_a_weight_is_within_half_a_step_of_what_it_was() -> None:
    weight = torch.randn(45, 37) * torch.logspace(-6, 6, 45)[:, None]
    weight[3] = 0.0
    quantized = QuantizedWeight.of(weight)
    error = (quantized.dequantised() - weight).abs()
    assert (error <= 0.5001 * quantized.scales[:, None]).all()
    assert quantized.shape == (45, 37)
    assert quantized.integers().abs().amax(1)[weight.abs().amax(1) > 0].eq(127).all()


def test_bad_arguments_are_named() -> None:
    weight = QuantizedWeight.of(torch.randn(4, 8))
    with pytest.raises(ValueError, match="takes rows of width 8"):
        kernels.linear_int8(torch.randn(3, 7), weight)
    with pytest.raises(ValueError, match="a bias of shape"):
        kernels.linear_int8(torch.randn(3, 8), weight, torch.randn(5))
    with pytest.raises(ValueError, match="a residual of shape"):
        kernels.linear_int8(torch.randn(3, 8), weight, residual=torch.randn(4))
    with pytest.raises(ValueError, match="it must be 'gelu' or None"):
        kernels.linear_int8(torch.randn(3, 8), weight, activation="relu")
    with pytest.raises(ValueError, match="has no gradient"):
        kernels.linear_int8(torch.randn(3, 8, requires_grad=True), weight)
    with pytest.raises(ValueError, match=r"a weight is \[N, K\]"):
        QuantizedWeight.of(torch.randn(3))
    with pytest.raises(ValueError, match="infinities or NaN"):
        QuantizedWeight.of(torch.tensor([[1.0, torch.inf]]))
    with kernels.use("native", "linear_int8"), pytest.raises(ValueError, match="one dtype"):
        kernels.linear_int8(torch.randn(3, 8), weight, torch.randn(4).bfloat16())
