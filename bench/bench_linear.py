"""linear at the sizes of a base model: the vision transformer of 8 images, and steps of decoding.

A decoding step meets every weight once, so those cases rotate over more than 100 MB of weights;
their time is that of one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels
from blip_fast.med.pages import copy_to_large_pages

COLD_BYTES = 110e6


def cases() -> Iterator[Case]:
    for k, n, gelu in ((768, 2304, False), (768, 3072, True), (3072, 768, False)):
        yield case(8 * 577, k, n, gelu, torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        for rows in (1, 3, 8, 12, 24, 32):
            yield case(rows, 768, 3072, True, dtype)
            yield case(rows, 3072, 768, False, dtype)
        yield case(1, 768, 30524, False, dtype)
        yield case(24, 768, 30524, False, dtype)


def case(rows: int, k: int, n: int, gelu: bool, dtype: torch.dtype) -> Case:
    copies = max(1, int(COLD_BYTES / (n * k * dtype.itemsize))) if rows < 577 else 1
    x, bias = torch.randn(rows, k).to(dtype), torch.randn(n).to(dtype)
    first = (torch.randn(n, k) * 0.02).to(dtype)
    # Ours in large pages, as a model is loaded; the rival's as PyTorch allocates.
    ours_in_turn = cycle(copy_to_large_pages([first] * copies))
    theirs_in_turn = cycle([first.clone() for _ in range(copies)])

    def ours():
        return kernels.linear(x, next(ours_in_turn), bias, "gelu" if gelu else None)

    def torch_in_turn():
        y = F.linear(x, next(theirs_in_turn), bias)
        return F.gelu(y) if gelu else y

    name = f"linear{' + GELU' if gelu else ''} [{rows}, {k}] -> {n} {str(dtype)[6:]}"
    amount = 2 * rows * k * n if rows >= 577 else n * k * dtype.itemsize
    unit = "FLOP" if rows >= 577 else "byte"
    return Case(name, {"blip_fast": ours, "torch": torch_in_turn}, amount, unit)


if __name__ == "__main__":
    main(cases())
