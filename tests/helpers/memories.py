"""What the tests of both rooms of attention to memory share: forcing, recording, formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import gate
import pytest
import torch
from oracles import attend
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blip_fast import kernels
from blip_fast.kernels import _ops

ISAS = (*gate.ISAS, *gate.TILES)
IMPLEMENTATIONS = ("reference", *ISAS)
DTYPES = (torch.float32, torch.bfloat16)

needs_native = pytest.mark.skipif(
    not _ops.NATIVE_LOADED, reason="the compiled library is not built (BLIP_FAST_NATIVE=0)"
)


class Recorder(TorchDispatchMode):
    """The names of our operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "blip_fast":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def forced(implementation: str) -> Iterator[None]:
    """Run the reference, or the compiled code under one instruction set, inside a `with`."""
    if implementation == "reference":
        with kernels.use("reference"):
            yield
        return
    if not _ops.NATIVE_LOADED:
        pytest.skip("the compiled library is not built (BLIP_FAST_NATIVE=0)")
    with gate.forced_isa(implementation), kernels.use("native"):
        yield


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def attend_to_memories(
    q: Tensor, memory: Tensor, lengths: list[int], index: list[int], keys: list[int] | None
) -> Tensor:
    """Text by text: rows of q [T, H, D] attend to the first keys of their memory."""
    parts = [q[:0]]
    for rows, m in zip(q.split(lengths), index, strict=True):
        count = memory.shape[1] if keys is None else keys[m]
        k, v = memory[m, :count].unbind(1)
        parts.append(attend(rows, k, v, causal=False) if count and len(rows) else 0 * rows)
    return torch.cat(parts)


def between_nans(t: Tensor) -> Tensor:
    """The same values, with NaN before and after, so that a read past the end shows."""
    flat = torch.full((t.numel() + 1024,), torch.nan, dtype=t.dtype)
    return flat[512 : 512 + t.numel()].view(t.shape).copy_(t)
