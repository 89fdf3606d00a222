"""Every way in which the rooms launch their kernels compiles for the GPUs of the day, and well.

Without a GPU, for A100 (sm_80), H100 and H200 (sm_90), B200 (sm_100): no register may go to memory,
and products of 16-bit numbers are made by matrix units. 16 bits are bfloat16 here, float16 compiles
alike; float32, which has no matrix units, is compiled for sm_90 alone. `make aot` runs this with
another release of Triton.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from aot import Compilation, Compiled, compilations  # noqa: E402

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ROOMS = sorted(path.stem for path in (HELPERS / "triton_problems").glob("*.py"))
TARGETS = [
    (80, torch.bfloat16),
    (90, torch.bfloat16),
    (100, torch.bfloat16),
    (90, torch.float32),
]


def test_every_room_with_kernels_has_problems() -> None:
    rooms = HELPERS.parents[1] / "kernels"
    assert sorted(path.parent.name for path in rooms.glob("*/triton.py")) == ROOMS


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
    found = compilations(room, dtype)
    assert found, "nothing was launched"
    matrix = import_module(f"triton_problems.{room}").MATRIX
    assert matrix <= {c.name for c in found}, f"of {matrix} some were not launched"

    def judge(compilation: Compilation) -> str:
        compiled = compilation.compile(capability)
        wanted = compilation.name in matrix and dtype != torch.float32
        return _faults(compiled, wanted)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = list(filter(None, pool.map(judge, found)))
    assert not faults, "\n".join(faults)


def _faults(compiled: Compiled, matrix: bool) -> str:
    registers, stack = compiled.registers_and_stack
    print(f"{compiled.compilation}: {registers} registers, {stack} bytes of stack")
    faults = []
    if compiled.spills:
        faults.append(f"spills ({stack} bytes of stack, {registers} registers)")
    if matrix and not compiled.uses_matrix_units:
        faults.append("no matrix units")
    return f"{compiled.compilation}: {', '.join(faults)}" if faults else ""
