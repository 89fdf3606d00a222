"""The gate can fail: a kernel with any one fault does not pass it, and a right one does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import gate
import pytest
import torch
from forcing import ISAS, TILES
from gate import Case, Run
from torch import Tensor
from torch.testing._internal.optests import OpCheckError

from blip_fast.kernels import _ops

ROOT = Path(__file__).resolve().parents[2]
RUN = Run("double", "faulty")


class Double:
    """A room that answers 2x, through an operator `blip_fast::double.faulty` with one fault."""

    def __init__(self) -> None:
        self.fault = ""
        self.calls = 0
        self.room = _ops.Room("double", faulty=(torch.float32,))
        self.room._obstacle = lambda *_: ""  # type: ignore[method-assign]  # no library needed
        self.library = torch.library.Library("blip_fast", "FRAGMENT")
        for overload in ("faulty", "other"):
            self.library.define(f"double.{overload}(Tensor x) -> Tensor")
            self.library.impl(f"double.{overload}", self.kernel, "CPU")
            torch.library.register_fake(
                f"blip_fast::double.{overload}", self.fake, lib=self.library
            )

    def fake(self, x: Tensor) -> Tensor:
        return x.new_empty(7) if self.fault == "fake" else torch.empty_like(x)

    def kernel(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = 2 * x
        if self.fault == "value":
            out[..., -1] *= 1.001
        elif self.fault == "NaN":
            out[..., 0] = torch.nan
        elif self.fault == "not repeatable":
            out += self.calls * 1e-8
        elif self.fault == "input overwritten":
            x.zero_()
        elif self.fault == "strides ignored":
            out = 2 * x.as_strided(x.shape, torch.empty(x.shape).stride())
        elif self.fault == "reads past the end" and x.untyped_storage().nbytes() > x.nbytes:
            out[..., -1] += 0 * x.as_strided((1,), (1,), x.storage_offset() + x.numel())[0]
        return out

    def __call__(self, x: Tensor) -> Tensor:
        if self.room.choose(x) == "reference" or self.fault == "reference runs":
            return 2 * x
        if self.fault == "refuses":
            raise ValueError("double takes no such case by faulty")
        overload = "other" if self.fault == "another runs" else "faulty"
        out = _Double.apply(self, overload, x)
        return out.double() if self.fault == "dtype" else out


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, room: Double, overload: str, x: Tensor) -> Tensor:
        ctx.room = room
        return getattr(torch.ops.blip_fast.double, overload)(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, None, Tensor]:
        if ctx.room.fault == "gradient":
            return None, None, 2.001 * grad
        return None, None, torch.ops.blip_fast.double.faulty(grad.contiguous())


@pytest.fixture(scope="module")
def made() -> Iterator[Double]:
    """Once: torch does not survive that an operator is removed and defined again."""
    double = Double()
    yield double
    double.library._destroy()
    del _ops._rooms["double"]


@pytest.fixture
def double(request: pytest.FixtureRequest, made: Double) -> Double:
    made.fault = getattr(request, "param", "")
    return made


def case_of(room: Double, only: tuple[str, ...] | None = None) -> Case:
    tensors = {"x": torch.randn(3, 5)}
    return Case(room, lambda high, x: 2 * x.to(high), tensors, only=only)


def test_a_right_kernel_passes(double: Double) -> None:
    for check in (gate.check_forward, gate.check_gradients, gate.check_operators):
        with gate.forced(RUN):
            check(case_of(double), RUN)
    with gate.forced(Run("double", "reference")):
        gate.check_forward(case_of(double), Run("double", "reference"))


FAULTS = [
    ("value", gate.check_forward, "error .* is above"),
    ("NaN", gate.check_forward, "not finite"),
    ("dtype", gate.check_forward, "torch.float64 is not torch.float32"),
    ("strides ignored", gate.check_forward, "strided, output 0"),
    ("reads past the end", gate.check_forward, "not finite"),
    ("not repeatable", gate.check_forward, "two runs differ"),
    ("input overwritten", gate.check_forward, "wrote into its input x"),
    ("reference runs", gate.check_forward, "no operator of it ran"),
    ("another runs", gate.check_forward, r"\['blip_fast.double.other'\] ran"),
    ("value", gate.check_gradients, "error .* is above"),
    ("gradient", gate.check_gradients, "gradient of x: .* is above"),
    ("reference runs", gate.check_gradients, "no operator of it ran"),
]


@pytest.mark.parametrize(
    ("double", "check", "message"),
    FAULTS,
    indirect=["double"],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_faulty_kernel_is_caught(
    double: Double, check: Callable[[Case, Run], None], message: str
) -> None:
    with gate.forced(RUN), pytest.raises(AssertionError, match=message):
        check(case_of(double), RUN)


@pytest.mark.parametrize("double", ["refuses"], indirect=True)
def test_a_case_that_is_not_taken_must_be_refused(double: Double) -> None:
    with gate.forced(RUN):
        gate.check_refused(case_of(double, only=("reference",)), RUN)
    double.fault = ""
    with gate.forced(RUN), pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        gate.check_refused(case_of(double, only=("reference",)), RUN)


@pytest.mark.parametrize("double", ["fake"], indirect=True)
def test_an_operator_with_a_wrong_fake_is_caught(double: Double) -> None:
    with gate.forced(RUN), pytest.raises(OpCheckError):
        gate.check_operators(case_of(double), RUN)


def test_compilation_runs_the_operators_and_leaves_nothing_out() -> None:
    tensors = {"x": torch.randn(3)}

    def in_parts(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return 2 * x

    plain = Case(lambda x: 2 * x, lambda high, x: 2 * x.to(high), tensors)
    gate.check_compiled(plain, Run("linear", "reference"))
    with pytest.raises(AssertionError, match="no operator of it ran"):
        gate.check_compiled(plain, Run("linear", "native"))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        gate.check_compiled(Case(in_parts, plain.formula, tensors), Run("linear", "reference"))


def test_every_case_meets_every_implementation() -> None:
    names = [str(run) for run in gate.runs("add_layernorm")]
    assert names == [*(f"native-{isa}" for isa in ISAS), "reference"]
    names = [str(run) for run in gate.runs("linear_int8")]
    assert names == [*(f"native-{isa}" for isa in (*ISAS, *TILES)), "reference"]
    assert [str(run) for run in gate.runs("add_layernorm", every_isa=False)] == [
        "native",
        "reference",
    ]


def test_instruction_sets_are_those_of_the_library() -> None:
    header = (ROOT / "csrc/include/blip_fast/isa.h").read_text(encoding="utf-8")
    table = re.search(r"kIsaLevels\[\] = \{(.*?)\};", header, re.DOTALL)
    assert table and tuple(re.findall(r'"(.*?)"', table[1])) == (*ISAS, *TILES)


def test_layouts_hold_the_same_values_elsewhere() -> None:
    t = torch.randn(4, 6)
    laid = {name: layout(t) for name, layout in gate.LAYOUTS.items()}
    assert all(torch.equal(other, t) for other in laid.values())
    assert not laid["strided"].is_contiguous() and not laid["with gaps"].is_contiguous()
    assert laid["misaligned"].is_contiguous() and laid["misaligned"].data_ptr() % 16 != 0
    for layout in gate.LAYOUTS.values():
        assert layout(torch.zeros(0, 6)).shape == (0, 6)
