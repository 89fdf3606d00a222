"""Weights in pages of 2 MB, for CPUs.

A step of decoding reads every weight once and is as fast as they stream in; in pages of 4 kB the
stream is cut every 4 kB. One row times a cold 768 x 3072 int8 weight takes 1.6 times longer so, on
a virtual Zen 4.

It is a hint: where Linux has no large pages to give, or the system is another, all works as before.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

PAGE = 2 << 20
# Every copy begins at a cache line.
LINE = 64


def copy_to_large_pages(
    tensors: Sequence[Tensor], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Copies of tensors on the CPU, one behind the other, each with a storage of its own.

    Args:
        dtype: of the copies; their own where none is given.
    """
    if not tensors:
        return []
    dtypes = [dtype or t.dtype for t in tensors]
    sizes = [
        -(-t.numel() * own.itemsize // LINE) * LINE for t, own in zip(tensors, dtypes, strict=True)
    ]
    area, place = _reserve(sum(sizes))
    copies = []
    for tensor, own, size in zip(tensors, dtypes, sizes, strict=True):
        # Each holds the memory, which is freed with the last of them.
        room = torch.frombuffer(area, dtype=own, count=tensor.numel(), offset=place)
        copies.append(room.view(tensor.shape).copy_(tensor))
        place += size
    return copies


def _reserve(size: int) -> tuple[mmap.mmap, int]:
    """Memory of the process alone, and where in it the first large page begins."""
    area = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(area)) % PAGE
    # What does not fill a large page at the end stays in small ones, and takes no more than it is.
    whole = size // PAGE * PAGE
    if whole and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            area.madvise(mmap.MADV_HUGEPAGE, first, whole)
        except OSError:  # a kernel without them
            pass
    return area, first
