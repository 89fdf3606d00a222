"""The gate: what every implementation of every room must pass.

A room's test states its cases once, in a class that inherits from `Gate`. Each implementation that
can run here is forced by name, the compiled one under each instruction set of this processor, and
each case is judged by the rule of `tolerance.py`, forward and backward, in several memory layouts,
eager and compiled. In every run the operators that ran are recorded and must be the forced ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from forcing import ISAS, TILES, Recorder, forced_isa
from tolerance import assert_close_as_torch, wide
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

from blip_fast import kernels
from blip_fast.kernels import _ops

Result = Tensor | tuple[Tensor, ...]

TILED_ROOMS = ("attention", "linear_int8")
# Tests of few cases, under one instruction set.
SLOW = ("test_gradients_of_strided", "test_compiled", "test_operators")


@dataclass(frozen=True)
class Case:
    """One problem for a room.

    Attributes:
        call: the room's public function of the tensors, in their order; the rest is bound.
        formula: what it computes, in plain PyTorch: `formula(high, *tensors)` answers in dtype
            `high`, and a formula that rounds on the way, as the room does, rounds to the tensors'.
        tensors: the floating inputs by name, all contiguous.
        gradients: which of them get a gradient; all where none are named, none with `()`.
        only: the implementations that take this case; the others must refuse it by name.
    """

    call: Callable[..., Result]
    formula: Callable[..., Result]
    tensors: dict[str, Tensor]
    gradients: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.tensors.values())).dtype

    @property
    def names_of_gradients(self) -> tuple[str, ...]:
        return tuple(self.tensors) if self.gradients is None else self.gradients


@dataclass(frozen=True)
class Run:
    """An implementation of a room, and for the compiled one an instruction set."""

    room: str
    implementation: str
    isa: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.implementation, self.isa)))


def runs(room: str, every_isa: bool = True) -> list[Run]:
    """Every implementation for the CPU; the compiled one once for each instruction set, or once.

    Where Triton is interpreted, CUDA emulated, or there is a GPU, they have gates of their own, of
    small cases: `tests/kernels/triton` and `tests/kernels/cuda`.
    """
    isas = (*ISAS, *TILES) if room in TILED_ROOMS else ISAS
    return [
        Run(room, name, isa)
        for name in _ops._rooms[room].implementations
        for isa in (isas if name == "native" and every_isa else ("",))
        if name not in (_ops.TRITON, _ops.CUDA)
    ]


@contextmanager
def forced(run: Run) -> Iterator[None]:
    """Run this and nothing else inside a `with`; skip the test where this machine cannot."""
    room, device = _ops._rooms[run.room], torch.get_default_device()
    dtypes = room._dtypes.get(run.implementation, ())
    obstacles = [room._obstacle(run.implementation, device, dtype) for dtype in dtypes]
    if obstacles and all(obstacles):  # not this dtype or that: none
        pytest.skip(f"{run}: {obstacles[0]}")
    with kernels.use(run.implementation, run.room), forced_isa(run.isa):
        yield


class Largest(TorchDispatchMode):
    """Elements of the largest floating tensor that PyTorch makes meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():  # no storage's bytes
            self.elements = max(self.elements, result.numel())
        return result


def assert_ran(run: Run, names: list[str]) -> None:
    """The recorded operators are of the forced implementation; for a reference there are none."""
    if run.implementation == _ops.REFERENCE:
        assert not names, f"{run}: the reference is plain PyTorch, but {names} ran"
        return
    assert names, f"{run}: it was asked for by name, but no operator of it ran"
    others = {name for name in names if not name.endswith(f".{run.implementation}")}
    assert not others, f"{run}: {sorted(others)} ran"


# Layouts: the same values elsewhere. What lies between them is NaN, so that it cannot go unseen.


def strided(t: Tensor) -> Tensor:
    """Every second element of its memory."""
    return _between_nans(t, 2 * t.numel())[::2].view(t.shape).copy_(t)


def with_gaps(t: Tensor) -> Tensor:
    """Contiguous rows, with a gap after each."""
    shape = (*t.shape[:-1], t.shape[-1] + 3)
    return _between_nans(t, _product(shape)).view(shape)[..., :-3].copy_(t)


def misaligned(t: Tensor) -> Tensor:
    """Contiguous, on no boundary, with NaN before and after."""
    return _between_nans(t, t.numel()).view(t.shape).copy_(t)


def _between_nans(t: Tensor, number: int) -> Tensor:
    return torch.full((number + 258,), torch.nan, dtype=t.dtype)[129 : 129 + number]


def _product(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.clone,
    "strided": strided,
    "with gaps": with_gaps,
    "misaligned": misaligned,
}


def outputs(result: Result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def check_forward(case: Case, run: Run) -> None:
    """Every layout is right; two runs are bit-equal; the inputs are as before."""
    truth = outputs(case.formula(wide(case.dtype), *case.tensors.values()))
    same = outputs(case.formula(case.dtype, *case.tensors.values()))
    for name, layout in LAYOUTS.items():
        tensors = [layout(t) for t in case.tensors.values()]
        with torch.no_grad(), Recorder() as recorder:
            actual = outputs(case.call(*tensors))
        assert_ran(run, recorder.names)
        _judge(f"{run} {name}", actual, same, truth)
        _assert_untouched(run, tensors, case)
        with torch.no_grad():
            _assert_bit_equal(f"{run} {name}", actual, outputs(case.call(*tensors)))


def check_gradients(case: Case, run: Run) -> None:
    """The gradient of every input, and two runs bit-equal."""
    high = wide(case.dtype)
    truth, truth_grads, _ = _gradients(_bound(case, high), case, high)
    same, same_grads, _ = _gradients(_bound(case, case.dtype), case, None)
    with Recorder() as recorder:
        actual, grads, leaves = _gradients(case.call, case, None)
    assert_ran(run, recorder.names)
    _assert_untouched(run, leaves, case)
    _judge(f"{run} with gradients", actual, same, truth)
    names = [f"gradient of {name}" for name in case.names_of_gradients]
    for name, *triple in zip(names, grads, same_grads, truth_grads, strict=True):
        assert_close_as_torch(f"{run} {name}", *triple)
    _assert_bit_equal(f"{run} gradients", grads, _gradients(case.call, case, None)[1])


def check_gradients_of_strided(case: Case, run: Run) -> None:
    """Gradients where nothing is contiguous, neither inputs nor the outputs' gradients."""
    high, wanted = wide(case.dtype), case.names_of_gradients
    _, truth_grads, _ = _gradients(_bound(case, high), case, high)
    _, same_grads, _ = _gradients(_bound(case, case.dtype), case, None)
    with Recorder() as recorder:
        _, grads, leaves = _gradients(case.call, case, None, strided)
    assert_ran(run, recorder.names)
    _assert_untouched(run, leaves, case)
    for name, *triple in zip(wanted, grads, same_grads, truth_grads, strict=True):
        assert_close_as_torch(f"{run} strided, gradient of {name}", *triple)


def check_compiled(case: Case, run: Run) -> None:
    """`torch.compile` takes it whole, forward and backward, and runs the same operators."""
    names: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable:
        names.extend(str(n.target) for n in graph.graph.nodes if _is_ours(n.target))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()  # aot_eager, and a look at its graphs
    compiled = torch.compile(case.call, fullgraph=True, backend=aot_autograd(fw_compiler=record))
    high, values = wide(case.dtype), case.tensors.values()
    with torch.no_grad():
        actual = outputs(compiled(*(t.clone() for t in values)))
    assert_ran(run, names)
    same = outputs(case.formula(case.dtype, *values))
    _judge(f"{run} compiled", actual, same, outputs(case.formula(high, *values)))
    if not case.names_of_gradients:
        return
    names.clear()
    _, grads, _ = _gradients(compiled, case, None)
    assert_ran(run, names)
    _, same_grads, _ = _gradients(_bound(case, case.dtype), case, None)
    _, truth_grads, _ = _gradients(_bound(case, high), case, high)
    for name, *triple in zip(case.names_of_gradients, grads, same_grads, truth_grads, strict=True):
        assert_close_as_torch(f"{run} compiled, gradient of {name}", *triple)


def check_operators(case: Case, run: Run) -> None:
    """`opcheck` of each operator that runs, on the arguments that it was given."""
    with Recorder() as recorder:
        if case.names_of_gradients:
            _gradients(case.call, case, None)
        with torch.no_grad():
            case.call(*case.tensors.values())
    for operator, (args, kwargs) in recorder.arguments.items():
        args = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
        torch.library.opcheck(operator, args, kwargs)


def check_refused(case: Case, run: Run) -> None:
    """Forced by name on a case that it does not take, an implementation raises."""
    with pytest.raises(ValueError, match=run.implementation):
        case.call(*case.tensors.values())


def _bound(case: Case, high: torch.dtype) -> Callable[..., Result]:
    return lambda *tensors: case.formula(high, *tensors)


def _gradients(
    call: Callable[..., Result],
    case: Case,
    dtype: torch.dtype | None,
    layout: Callable[[Tensor], Tensor] = torch.clone,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], list[Tensor]]:
    """Outputs, gradients and leaves of a call; the outputs' gradients are the same every time."""
    wanted = case.names_of_gradients
    leaves = {
        name: layout(t.to(dtype or t.dtype)).requires_grad_(name in wanted)
        for name, t in case.tensors.items()
    }
    results = outputs(call(*leaves.values()))
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    ends = [out for out in results if out.requires_grad]
    cotangents = [
        layout(torch.randn(out.shape, generator=generator).to(case.dtype).to(out.dtype))
        for out in ends
    ]
    assert ends, "no output needs a gradient"
    grads = torch.autograd.grad(ends, [leaves[name] for name in wanted], cotangents)
    return tuple(out.detach() for out in results), grads, list(leaves.values())


def _judge(name: str, actual: tuple, same: tuple, truth: tuple) -> None:
    for i, triple in enumerate(zip(actual, same, truth, strict=True)):
        if triple[0].is_floating_point():
            assert_close_as_torch(f"{name}, output {i}", *triple)
        else:
            assert triple[0].dtype == triple[1].dtype, f"{name}, output {i}: {triple[0].dtype}"
            assert torch.equal(triple[0], triple[2]), f"{name}, output {i}: not the same integers"


def _assert_bit_equal(name: str, first: tuple, second: tuple) -> None:
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"{name}, output {i}: two runs differ"


def _assert_untouched(run: Run, tensors: list[Tensor], case: Case) -> None:
    for (name, before), after in zip(case.tensors.items(), tensors, strict=True):
        assert torch.equal(before, after.detach()), f"{run}: it wrote into its input {name}"


def _is_ours(target: Any) -> bool:
    return getattr(target, "namespace", "") == "blip_fast"


class Gate:
    """Inherit as `class Test<Room>(Gate)`, state `room` and `cases`, and all tests are there.

    Attributes:
        room: its name.
        cases: name to a function that makes the case, called under a fixed seed. Have odd sizes,
            one row, zero rows, extreme values, every dtype, and one case large enough for threads.
        few: names of the cases that are also differentiated in another layout, compiled and given
            to `opcheck`, which is slow; the first alone where none are named.
        implementations: those to judge; all that are for the CPU where none are named.
    """

    room: ClassVar[str]
    cases: ClassVar[dict[str, Callable[[], Case]]]
    few: ClassVar[tuple[str, ...]] = ()
    implementations: ClassVar[tuple[str, ...]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "run" not in metafunc.fixturenames:  # a test that the room adds
            return
        slow = metafunc.function.__name__ in SLOW
        named = [Run(self.room, name) for name in self.implementations]
        metafunc.parametrize("run", named or runs(self.room, every_isa=not slow), ids=str)
        some = self.few or tuple(self.cases)[:1]
        metafunc.parametrize("name", some if slow else tuple(self.cases))

    def _check(self, check: Callable[[Case, Run], None], name: str, run: Run) -> None:
        case = self.cases[name]()
        with forced(run):
            taken = case.only is None or run.implementation in case.only
            (check if taken else check_refused)(case, run)

    def test_forward(self, name: str, run: Run) -> None:
        self._check(check_forward, name, run)

    def test_gradients(self, name: str, run: Run) -> None:
        if not self.cases[name]().names_of_gradients:
            pytest.skip("this case has no gradients")
        torch.manual_seed(0)  # the case is made anew, of the same values
        self._check(check_gradients, name, run)

    def test_gradients_of_strided(self, name: str, run: Run) -> None:
        if not self.cases[name]().names_of_gradients:
            pytest.skip("this case has no gradients")
        torch.manual_seed(0)
        self._check(check_gradients_of_strided, name, run)

    def test_compiled(self, name: str, run: Run) -> None:
        self._check(check_compiled, name, run)

    def test_operators(self, name: str, run: Run) -> None:
        self._check(check_operators, name, run)
