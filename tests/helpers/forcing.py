"""Which implementation of a room runs, on which instructions and threads, and what has run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blip_fast import kernels
from blip_fast.kernels import _ops

# The levels of csrc/include/blip_fast/isa.h; tests/kernels/test_gate.py holds them together.
ISAS = ("portable", "avx2", "avx512", "avx512bf16")
# Beside them in rooms with a path over AMX tiles: the processor's, and the same path on emulated
# ones, with the vectors of such a processor and with anyone's.
TILES = ("amx", "amx-emulated", "amx-portable")

_NOT_BUILT = "the compiled library is not built (BLIP_FAST_NATIVE=0)"
needs_native = pytest.mark.skipif(not _ops.NATIVE_LOADED, reason=_NOT_BUILT)


@contextmanager
def forced_isa(isa: str) -> Iterator[None]:
    """Use one instruction set inside a `with`, or with an empty name the processor's best."""
    if not isa:
        yield
        return
    before = torch.ops.blip_fast.cpu_isa()
    try:
        torch.ops.blip_fast.set_cpu_isa(isa)
    except RuntimeError as error:
        pytest.skip(f"this processor has no {isa}: {error}")
    try:
        yield
        assert torch.ops.blip_fast.cpu_isa() == isa, f"{isa} was changed inside the test"
    finally:
        torch.ops.blip_fast.set_cpu_isa(before)


@contextmanager
def forced_path(path: str, *rooms: str) -> Iterator[None]:
    """Run in some rooms, or all, "reference" or the compiled code under one instruction set.

    Skips the test where this machine cannot.
    """
    if path == _ops.REFERENCE:
        with kernels.use(_ops.REFERENCE, *rooms):
            yield
        return
    if not _ops.NATIVE_LOADED:
        pytest.skip(_NOT_BUILT)
    with forced_isa(path), kernels.use("native", *rooms):
        yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads inside a `with`."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Recorder(TorchDispatchMode):
    """Our operators that ran, by name, and the arguments of each one's first run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.arguments: dict[Any, tuple[Any, dict]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "blip_fast":
            self.names.append(str(func))
            self.arguments.setdefault(func, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))
