"""Every way in which the rooms launch their kernels compiles for the GPUs of the day, and well.

Without a GPU, for A100 (sm_80), H100 and H200 (sm_90), B200 (sm_100): no register may go to memory,
nothing is summed by atomics, products of 16-bit numbers are made by matrix units, and the host
waits for nothing. bfloat16 is compiled for all three, float16 and float32, which has no
matrix units, for sm_90. `make aot` runs this with another release of Triton.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

triton = pytest.importorskip("triton")

from aot import Compilation, Compiled, compilations, not_launched  # noqa: E402

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ROOMS = sorted(path.stem for path in (HELPERS / "triton_problems").glob("*.py"))
TARGETS = [
    (80, torch.bfloat16),
    (90, torch.bfloat16),
    (100, torch.bfloat16),
    (90, torch.float16),
    (90, torch.float32),
]


def test_every_room_with_kernels_has_problems() -> None:
    rooms = HELPERS.parents[1] / "kernels"
    assert sorted(path.parent.name for path in rooms.glob("*/triton.py")) == ROOMS


def _problems(room: str) -> ModuleType:
    return import_module(f"triton_problems.{room}")


@pytest.fixture(scope="session", autouse=True)
def _cache(request: pytest.FixtureRequest) -> None:
    """What is compiled is kept from one run to the next, for each release of Triton."""
    assert request.config.cache is not None
    folder = request.config.cache.mkdir(f"triton-{triton.__version__}")
    os.environ["TRITON_CACHE_DIR"] = str(folder)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(
    ("capability", "dtype"), TARGETS, ids=[f"sm_{c}-{str(d)[6:]}" for c, d in TARGETS]
)
def test_compiles_well(room: str, capability: int, dtype: torch.dtype) -> None:
    found = compilations(_problems(room).problems(dtype))
    matrix = _problems(room).MATRIX
    assert matrix <= {c.name for c in found}, f"of {matrix} some were not launched"
    _assert_good(found, capability, set() if dtype == torch.float32 else matrix)


@pytest.mark.parametrize("room", ROOMS)
def test_sizes_of_one_are_constants_and_compile_too(room: str) -> None:
    """Triton makes an integer of 1 a constant, which not every expression takes."""
    found = compilations([lambda: _problems(room).smallest(torch.bfloat16)])
    _assert_good(found, 90, set())


def _assert_good(found: list[Compilation], capability: int, matrix: set[str]) -> None:
    def judge(compilation: Compilation) -> str:
        return _faults(compilation.compile(capability), compilation.name in matrix)

    assert found, "nothing was launched"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = list(filter(None, pool.map(judge, found)))
    assert not faults, "\n".join(faults)


def _faults(compiled: Compiled, matrix: bool) -> str:
    registers, memory = compiled.registers_and_memory
    print(f"{compiled.compilation}: {registers} registers, {memory} bytes of memory")
    faults = []
    if memory:
        faults.append(f"spills ({memory} bytes, {registers} registers)")
    if compiled.atomics:
        faults.append("atomics")
    if matrix and not compiled.uses_matrix_units:
        faults.append("no matrix units")
    return f"{compiled.compilation}: {', '.join(faults)}" if faults else ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("room", ROOMS)
def test_launching_waits_for_nothing(room: str, dtype: torch.dtype) -> None:
    """A launcher does all that it does on tensors without values, which nobody can ask for one."""
    with not_launched() as launches, torch.device("meta"):
        problems = list(_problems(room).problems(dtype))
        for problem in problems:
            problem()
    assert len(launches) >= len(problems)


def test_tensors_without_values_refuse_whoever_waits() -> None:
    values = torch.ones(3, device="meta")
    for wait in (values.sum().item, values.cpu, values.nonzero, values.tolist, values[0].__bool__):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
