"""Compiles what the rooms launch for GPUs that are not here, and reads what came out.

A launch is recorded instead of run: the operator is called on CPU tensors, so what is compiled is
what would be launched, with the same constants, warps and specialisations of its arguments. ptxas
and the tools that read its output come with Triton.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as now; the default changes with 3.10

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
# What a kernel's products look like: on sm_80 always the first, on sm_90 and sm_100 either of two,
# by the size of its tiles.
MATRIX = {80: r"mma\.sync", 90: r"wgmma\.mma_async|mma\.sync", 100: r"tcgen05\.mma|mma\.sync"}

# Python 3.11's parser counts its depth for all threads together, and fails when two take turns.
_PARSER = threading.Lock()


class _Source(ASTSource):
    """What a kernel is compiled from; parsed by one thread at a time."""

    def hash(self) -> str:
        with _PARSER:
            return super().hash()

    def make_ir(self, *arguments: Any) -> Any:
        with _PARSER:
            return super().make_ir(*arguments)


@dataclass(frozen=True)
class Compilation:
    """One way in which a kernel is launched."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[int, ...]
    options: dict[str, int]

    def __str__(self) -> str:
        types = {kind for kind in self.signature.values() if kind.startswith("*")}
        constants = {k: v for k, v in self.constants.items() if k.isupper()}
        return f"{self.name}({', '.join(sorted(types))}) {constants} {self.options}"

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def compile(self, capability: int) -> Compiled:
        attributes = {(i,): [["tt.divisibility", 16]] for i in self.aligned}
        source = _Source(self.kernel, self.signature, self.constants, attributes)
        target = GPUTarget("cuda", capability, 32)
        result = triton.compile(source, target=target, options=self.options)
        return Compiled(self, capability, result.asm["ptx"], result.asm["cubin"])


@dataclass(frozen=True)
class Compiled:
    compilation: Compilation
    capability: int
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)

    @cached_property
    def registers_and_memory(self) -> tuple[int, int]:
        """Registers of a thread, and bytes of memory of its own: where they did not suffice."""
        usage = _read_cubin(self.cubin, "cuobjdump", "-res-usage")
        used = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
        assert used, "cuobjdump tells no resources"
        return int(used[1]), int(used[2]) + int(used[3])

    @property
    def uses_matrix_units(self) -> bool:
        return bool(re.search(MATRIX[self.capability], self.ptx))

    @property
    def atomics(self) -> bool:
        """Whether it adds to memory in whatever order programs come."""
        return bool(re.search(r"\b(atom|red)\.", self.ptx))


def _read_cubin(cubin: bytes, tool: str, *options: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def recorded() -> Iterator[list[Compilation]]:
    """Inside a `with`, kernels are noted and not run."""
    found: list[Compilation] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if 0 not in (grid(kwargs) if callable(grid) else grid):
            found.append(_compilation(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield found


@contextmanager
def not_launched() -> Iterator[list[str]]:
    """Inside a `with`, kernels are named and not run; of their arguments nothing is asked."""
    names: list[str] = []

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
        names.append(kernel.fn.__name__)

    with mock.patch.object(JITFunction, "run", run):
        yield names


def _compilation(kernel: Any, args: tuple, kwargs: dict[str, Any]) -> Compilation:
    """What Triton would specialise a launch on: constants, ints that are 1, multiples of 16."""
    options = {k: kwargs[k] for k in _OPTIONS if k in kwargs}
    given = dict(zip(kernel.arg_names, args, strict=False))
    given |= {k: v for k, v in kwargs.items() if k not in options}
    signature, constants, aligned = {}, {}, []
    for i, parameter in enumerate(kernel.params):
        value = given[parameter.name] if parameter.name in given else parameter.default
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = parameter.annotation_type or _kind(value)
        number = value.data_ptr() if isinstance(value, Tensor) else value
        if isinstance(number, int) and number % 16 == 0:
            aligned.append(i)
    return Compilation(kernel, signature, constants, tuple(aligned), options)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compilations(problems: Iterable[Callable[[], object]]) -> list[Compilation]:
    """All that is launched on some problems of a room, `triton_problems/<room>.py`; each once."""
    with recorded() as found:
        for problem in problems:
            problem()
    return list({(str(c), str(c.signature), c.aligned): c for c in found}.values())
