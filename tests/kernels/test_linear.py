"""Every implementation of linear that can run here, against the formula in higher precision."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from forcing import ISAS, Recorder, forced_path, needs_native
from tolerance import assert_close_as_torch, wide
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.kernels import _ops
from blip_fast.kernels.linear import _room, onednn
from blip_fast.kernels.linear.config import DROPPED_ROWS

DTYPES = [torch.float32, torch.bfloat16]
# Rows, K and N: one of each, around tiles and vectors, beyond a group of rows, real widths.
SHAPES = [
    (1, 1, 1),
    (1, 768, 768),
    (2, 31, 3),
    (3, 33, 17),
    (5, 64, 4),
    (6, 768, 37),
    (7, 97, 5),
    (24, 768, 3072),
    (49, 3072, 20),
    (101, 40, 63),
]
needs_onednn = pytest.mark.skipif(
    not _ops._ONEDNN_HAS_BF16, reason="this torch or processor has no oneDNN for bfloat16"
)


def available() -> list[str]:
    """The opaque implementations that this machine runs."""
    has = {"native": _ops.NATIVE_LOADED, "onednn": _ops._ONEDNN_HAS_BF16}
    return [name for name, there in has.items() if there]


@pytest.fixture(params=["reference", "onednn", *ISAS])
def forced(request: pytest.FixtureRequest):
    """One implementation after the other, the native one with each instruction set, by name."""
    if request.param == "onednn":
        with kernels.use("onednn", "linear"):
            yield request.param
        return
    with forced_path(request.param, "linear"):
        yield request.param


def can_run(forced: str, dtype: torch.dtype) -> None:
    if forced == "onednn" and (dtype != torch.bfloat16 or not _ops._ONEDNN_HAS_BF16):
        pytest.skip(f"oneDNN is not used for {dtype} on this processor")


def inputs(rows: int, k: int, n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + k + n)
    shapes = (rows, k), (n, k), (n,), (rows, n)
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)


def formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    y = x @ weight.T
    y = y if bias is None else y + bias
    if activation:
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
    return y if residual is None else y + residual


def judge(name: str, actual: Tensor, arguments: list, activation: str | None) -> None:
    def at(dtype: torch.dtype) -> list:
        return [None if t is None else t.to(dtype) for t in arguments]

    x, weight, bias, residual = at(actual.dtype)
    y = F.linear(x, weight, bias)
    y = F.gelu(y) if activation else y
    same = y if residual is None else y + residual
    x, weight, bias, residual = at(wide(actual.dtype))
    truth = formula(x, weight, bias, activation, residual)
    assert_close_as_torch(name, actual, same, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(forced: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    can_run(forced, dtype)
    x, weight, bias, residual = inputs(*shape, dtype)
    for activation in (None, "gelu"):
        for chosen in ((None, None), (bias, None), (bias, residual), (None, residual)):
            actual = kernels.linear(x, weight, chosen[0], activation, chosen[1])
            name = f"{forced} {dtype} {shape} {activation}"
            judge(name, actual, [x, weight, *chosen], activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_no_columns_no_width(forced: str, dtype: torch.dtype) -> None:
    can_run(forced, dtype)
    for shape in ((0, 8, 3), (2, 8, 0), (2, 0, 3)):
        x, weight, bias, residual = inputs(*shape, dtype)
        actual = kernels.linear(x, weight, bias, "gelu", residual)
        assert actual.shape == (shape[0], shape[2])
        torch.testing.assert_close(actual, F.gelu(bias).expand_as(actual) + residual)


@pytest.mark.parametrize("dtype", DTYPES)
def test_leading_axes_and_strides(forced: str, dtype: torch.dtype) -> None:
    can_run(forced, dtype)
    x, weight, bias, residual = inputs(12, 40, 10, dtype)
    strided_x = x.view(3, 4, 40).transpose(0, 1)
    strided = residual.view(3, 4, 10).transpose(0, 1)
    columns = weight.t().contiguous().t()
    actual = kernels.linear(strided_x, columns, bias[::1], "gelu", strided)
    assert actual.shape == (4, 3, 10)
    judge(forced, actual, [strided_x, weight, bias, strided], "gelu")
    one = kernels.linear(x[0], weight, bias)
    judge(forced, one, [x[0], weight, bias, None], None)


def test_an_infinity_or_nan_stays_in_its_row(forced: str) -> None:
    can_run(forced, torch.bfloat16)
    x, weight, bias, _ = inputs(9, 70, 21, torch.bfloat16)
    x[4, 69], x[5, 0] = torch.nan, torch.inf
    actual = kernels.linear(x, weight, bias, "gelu")
    assert actual[4].isnan().all() and not actual[5].isfinite().all()
    assert actual[[0, 1, 2, 3, 6, 7, 8]].isfinite().all()


def test_gelu_everywhere(forced: str) -> None:
    """One weight of 1, so that x itself meets the activation, from -10 to 10."""
    can_run(forced, torch.float32)
    x = torch.linspace(-10, 10, 4001)[:, None]
    actual = kernels.linear(x, torch.ones(1, 1), None, "gelu")
    truth = formula(x.double(), torch.ones(1, 1).double(), None, "gelu", None)
    assert (actual - truth).abs().max() <= 4e-7 * 10
    near = x.abs() < 1
    assert ((actual - truth).abs() <= 2e-7)[near].all()


def test_two_runs_are_bit_equal(forced: str) -> None:
    can_run(forced, torch.bfloat16)
    x, weight, bias, residual = inputs(24, 768, 3072, torch.bfloat16)
    first = kernels.linear(x, weight, bias, "gelu", residual)
    assert torch.equal(first, kernels.linear(x, weight, bias, "gelu", residual))


@needs_native
def test_a_row_does_not_depend_on_its_batch() -> None:
    x, weight, bias, _ = inputs(29, 768, 64, torch.bfloat16)
    with kernels.use("native", "linear"):
        together = kernels.linear(x, weight, bias)
        for rows in (1, 2, 5, 8):
            assert torch.equal(kernels.linear(x[:rows], weight, bias), together[:rows])


@pytest.mark.parametrize("name", ["native", "onednn"])
def test_operator_is_sound_and_compiles_whole(name: str) -> None:
    if name not in available():
        pytest.skip(f"this machine has no {name}")
    x, weight, bias, residual = inputs(5, 48, 20, torch.bfloat16)
    op = _room.operator(name)
    torch.library.opcheck(op, (x, weight, bias, True, residual))
    torch.library.opcheck(op, (x, weight, None, False, None))

    def block(x: Tensor) -> Tensor:
        return kernels.linear(x, weight, bias, "gelu").relu() + 1

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with kernels.use(name, "linear"):
        torch.testing.assert_close(compiled(x), block(x))


def test_gradients_come_from_the_reference_or_an_error() -> None:
    tensors = [t.double().requires_grad_() for t in inputs(6, 33, 7, torch.float32)]
    x, weight, bias, residual = (t.detach().float().requires_grad_() for t in tensors)
    with Recorder() as recorder:
        kernels.linear(x, weight, bias, "gelu", residual).square().sum().backward()
    assert not recorder.names
    formula(tensors[0], tensors[1], tensors[2], "gelu", tensors[3]).square().sum().backward()
    for actual, truth in zip((x, weight, bias, residual), tensors, strict=True):
        torch.testing.assert_close(actual.grad.double(), truth.grad, rtol=1e-4, atol=1e-4)
    x, weight, bias = (t.detach().bfloat16().requires_grad_() for t in (x, weight, bias))
    for name in available():
        with kernels.use(name, "linear"), pytest.raises(ValueError, match="has no gradient"):
            kernels.linear(x, weight, bias)
        with kernels.use(name, "linear"), torch.no_grad():
            judge(name, kernels.linear(x, weight, bias), [x, weight, bias, None], None)


def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    x, weight, bias, _ = inputs(2, 8, 4, torch.bfloat16)
    expected = {name: [f"blip_fast.linear.{name}"] for name in available()}
    expected["reference"] = []
    for name, operators in expected.items():
        with kernels.use(name, "linear"), Recorder() as recorder:
            kernels.linear(x, weight, bias)
        assert recorder.names == operators


@needs_native
@needs_onednn
def test_few_rows_are_native_and_many_are_onednn() -> None:
    _, weight, bias, _ = inputs(1, 64, 64, torch.bfloat16)
    for rows, expected in ((1, "native"), (577, "onednn")):
        x = torch.randn(rows, 64).bfloat16()
        with Recorder() as recorder:
            kernels.linear(x, weight, bias)
        assert recorder.names == [f"blip_fast.linear.{expected}"]


def test_a_dtype_that_none_has_goes_to_the_reference_or_raises() -> None:
    x, weight, bias, _ = (t.double() for t in inputs(2, 8, 4, torch.float32))
    assert kernels.linear(x, weight, bias).dtype == torch.float64
    for name in available():
        with kernels.use(name, "linear"), pytest.raises(ValueError, match="not float64"):
            kernels.linear(x, weight, bias)
        with kernels.use(name, "linear"), pytest.raises(ValueError, match="of one dtype"):
            kernels.linear(x.bfloat16(), weight, bias)


@needs_onednn
class TestPackedWeights:
    """The copies in oneDNN's order: kept, renewed when the weight changes, dropped with it."""

    @pytest.fixture(autouse=True)
    def forced(self):
        onednn._kept.clear()
        with kernels.use("onednn", "linear"):
            yield

    def test_kept_while_the_weight_is_the_same(self) -> None:
        x, weight, bias, _ = inputs(3, 40, 20, torch.bfloat16)
        kernels.linear(x, weight, bias)
        first = onednn._kept[weight].tensor
        with torch.inference_mode():
            kernels.linear(x, weight, bias)
        assert onednn._kept[weight].tensor is first and len(onednn._kept) == 1

    def test_not_kept_for_so_many_rows_that_packing_costs_nothing(self) -> None:
        few, weight, bias, _ = inputs(3, 16, 8, torch.bfloat16)
        many = torch.randn(DROPPED_ROWS // 2, 2, 16).bfloat16()
        expected = F.linear(many, weight, bias)
        torch.testing.assert_close(kernels.linear(many, weight, bias), expected)
        assert len(onednn._kept) == 0
        kernels.linear(few, weight, bias)
        first = onednn._kept[weight].tensor
        torch.testing.assert_close(kernels.linear(many, weight, bias), expected)
        assert onednn._kept[weight].tensor is first
        weight.mul_(2)
        expected = F.linear(many, weight, bias)
        torch.testing.assert_close(kernels.linear(many, weight, bias), expected)
        assert len(onednn._kept) == 0  # nobody needs the copy of what the weight was

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_renewed_when_written_in_place(self, mode) -> None:
        x, weight, bias, _ = inputs(3, 40, 20, torch.bfloat16)
        kernels.linear(x, weight, bias)
        with mode():
            weight.mul_(2)
            torch.testing.assert_close(kernels.linear(x, weight, bias), F.linear(x, weight, bias))

    def test_renewed_when_given_other_data(self) -> None:
        x, weight, bias, _ = inputs(3, 40, 20, torch.bfloat16)
        weight = torch.nn.Parameter(weight, requires_grad=False)
        for _ in range(20):  # the allocator likes to give the same address again
            kernels.linear(x, weight, bias)
            new = torch.randn(20, 40).bfloat16()
            weight.data = torch.empty(0)
            weight.data = new.clone()
            torch.testing.assert_close(kernels.linear(x, weight, bias), F.linear(x, new, bias))

    def test_dropped_with_the_weight(self) -> None:
        x, weight, bias, _ = inputs(3, 40, 20, torch.bfloat16)
        kernels.linear(x, weight, bias)
        assert len(onednn._kept) == 1
        del weight
        gc.collect()
        assert len(onednn._kept) == 0

    def test_nothing_is_kept_of_a_weight_that_may_change_unseen(self) -> None:
        x, weight, bias, _ = inputs(3, 40, 20, torch.bfloat16)
        with torch.no_grad():
            trained = weight.clone().requires_grad_()
            kernels.linear(x, trained, bias)
            trained.data.mul_(3)
            torch.testing.assert_close(kernels.linear(x, trained, bias), F.linear(x, trained, bias))
        with torch.inference_mode():
            born_inside = weight.clone()
            kernels.linear(x, born_inside, bias)
            born_inside.mul_(2)
            expected = F.linear(x, born_inside, bias)
            torch.testing.assert_close(kernels.linear(x, born_inside, bias), expected)
        assert len(onednn._kept) == 0


def test_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="rows of width 4; the weight .* takes 5"):
        kernels.linear(torch.randn(2, 4), torch.randn(3, 5))
    x, weight, bias, residual = inputs(2, 5, 3, torch.float32)
    with pytest.raises(ValueError, match=r"a bias of shape \(3,\); it is \(2,\)"):
        kernels.linear(x, weight, bias[:2])
    with pytest.raises(ValueError, match=r"a residual of shape \(2, 3\); it is \(3,\)"):
        kernels.linear(x, weight, bias, None, residual[0])
    with pytest.raises(ValueError, match="it must be 'gelu' or None"):
        kernels.linear(x, weight, bias, "relu")
