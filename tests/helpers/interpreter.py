"""bfloat16 in Triton's interpreter, which takes its bits for integers.

The interpreter holds a bfloat16 array as uint16 and computes on those bits: sums and products are
noise, casts truncate. Here every operation sees such arrays widened to float32, and a result that
should be bfloat16 is rounded to the nearest, ties to even, as the hardware does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

# What works on bits whatever they mean.
_BITWISE = (np.left_shift, np.right_shift, np.bitwise_and, np.bitwise_or, np.bitwise_xor)


def install() -> None:
    """Correct the interpreter of this process; once."""
    if getattr(InterpreterBuilder, "_bfloat16_is_right", False):
        return
    InterpreterBuilder._bfloat16_is_right = True
    for name in ("binary_op", "unary_op", "ternary_op"):
        setattr(InterpreterBuilder, name, _elementwise(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = _dot(InterpreterBuilder.create_dot)
    InterpreterBuilder.cast_impl = _cast(InterpreterBuilder.cast_impl)
    InterpreterBuilder.create_fp_to_fp = _convert(InterpreterBuilder.create_fp_to_fp)
    for kind in (interpreter.ReduceOps, interpreter.ScanOps):
        kind.apply_impl = _reduce(kind.apply_impl)
    interpreter.ReduceOps.generic_reduce = _xor(interpreter.ReduceOps.generic_reduce)


@contextmanager
def loads_of(tensor: Tensor) -> Iterator[Tensor]:
    """How often kernels inside a `with` load each element of a contiguous tensor: of its shape."""
    counts = torch.zeros(tensor.shape, dtype=torch.int64)
    begin, size = tensor.data_ptr(), tensor.element_size()
    load = InterpreterBuilder.create_masked_load

    def counted(self: Any, ptrs: TensorHandle, mask: TensorHandle, *others: Any) -> TensorHandle:
        place = ptrs.data[mask.data].astype(np.int64) - begin
        place = place[(place >= 0) & (place < tensor.nbytes)] // size
        counts.view(-1).add_(torch.bincount(torch.from_numpy(place), minlength=tensor.numel()))
        return load(self, ptrs, mask, *others)

    with mock.patch.object(InterpreterBuilder, "create_masked_load", counted):
        yield counts


def _is_bfloat16(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _widen(handle: Any) -> Any:
    """bfloat16 as float32, exactly; anything else as it is."""
    if not _is_bfloat16(handle) or handle.data.dtype != np.uint16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _round(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    odd = (bits >> 16) & 1
    rounded = ((bits.astype(np.uint64) + 0x7FFF + odd) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _narrow(handle: TensorHandle) -> TensorHandle:
    """A float32 result as bfloat16; a comparison's result as it is."""
    if handle.data.dtype != np.float32:
        return handle
    return TensorHandle(_round(handle.data), tl.bfloat16)


def _elementwise(original: Callable) -> Callable:
    def operation(self: Any, *arguments: Any) -> TensorHandle:
        *operands, function = arguments
        values = operands[1:] if function is np.where else operands  # the first is a condition
        bits = function in _BITWISE or function is np.where
        if bits or not any(_is_bfloat16(o) for o in values):
            return original(self, *arguments)
        return _narrow(original(self, *(_widen(o) for o in operands), function))

    return operation


def _dot(original: Callable) -> Callable:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> TensorHandle:
        return original(self, _widen(a), _widen(b), d, *options)

    return create_dot


def _cast(original: Callable) -> Callable:
    def cast_impl(self: Any, source: TensorHandle, kind: Any) -> TensorHandle:
        before, after = source.dtype.scalar, kind.scalar
        if before == after:
            return original(self, source, kind)
        if after == tl.bfloat16:
            return TensorHandle(_round(source.data.astype(np.float32)), tl.bfloat16)
        if before == tl.bfloat16:
            wide = _widen(source)
            return wide if after == tl.float32 else original(self, wide, kind)
        return original(self, source, kind)

    return cast_impl


def _convert(original: Callable) -> Callable:
    def create_fp_to_fp(self: Any, source: TensorHandle, kind: Any, mode: Any) -> TensorHandle:
        pair = source.dtype.scalar, kind.scalar
        if tl.bfloat16 in pair and all(dtype.primitive_bitwidth >= 16 for dtype in pair):
            return self.cast_impl(source, kind)
        return original(self, _widen(source), kind, mode)

    return create_fp_to_fp


def _reduce(original: Callable) -> Callable:
    def apply_impl(self: Any, inputs: Any) -> Any:
        narrow = [_is_bfloat16(t.handle) for t in inputs]
        if not any(narrow):
            return original(self, inputs)
        wide = tuple(
            tl.core.tensor(_widen(t.handle), tl.block_type(tl.float32, list(t.handle.data.shape)))
            if is_narrow
            else t
            for t, is_narrow in zip(inputs, narrow, strict=True)
        )
        result = original(self, wide)
        several = isinstance(result, (list, tuple))
        results = [
            _narrowed(self, r) if is_narrow else r
            for r, is_narrow in zip(
                result if several else [result], [*narrow, *([False] * len(inputs))], strict=False
            )
        ]
        return results if several else results[0]

    return apply_impl


def _xor(original: Callable) -> Callable:
    """Sorting is made of exclusive ors; the interpreter's way is Python's, an element at a time."""

    def generic_reduce(self: Any, inputs: Any) -> Any:
        if self.combine_fn is not tl.standard._xor_combine:
            return original(self, inputs)
        (t,) = inputs
        data = np.bitwise_xor.reduce(t.handle.data, axis=self.axis, keepdims=self.keep_dims)
        return [self.to_tensor(data, t.dtype)]

    return generic_reduce


def _narrowed(operation: Any, result: Any) -> Any:
    if result.handle.data.dtype != np.float32:  # an index
        return result
    bits = _round(result.handle.data)
    return operation.to_tensor(bits if result.shape else bits[0], tl.bfloat16)
