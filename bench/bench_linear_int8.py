"""linear_int8 at the sizes of a base model, against torch's fused bfloat16 product.

The rival is `mkldnn._linear_pointwise` on a packed weight, which `linear` itself runs for many
rows, or F.linear for the few rows of a step of decoding. Those cases rotate over more than 100 MB
of bfloat16 weights, as in bench_linear. Quantising x is a part of our time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch
from torch.nn import functional as F

from bench.bench_linear import COLD_BYTES
from bench.harness import Case, main
from blip_fast import kernels
from blip_fast.med.pages import copy_to_large_pages

# Of the largest value, for both roundings to 8 bits.
ALLOWED = 0.05


def cases() -> Iterator[Case]:
    for k, n, gelu in ((768, 2304, False), (768, 3072, True), (3072, 768, False)):
        yield case(8 * 577, k, n, gelu)
    for rows in (1, 3, 8, 24, 32):
        yield case(rows, 768, 3072, True)
        yield case(rows, 3072, 768, False)
    yield case(1, 768, 30524, False)
    yield case(24, 768, 30524, False)


def case(rows: int, k: int, n: int, gelu: bool) -> Case:
    many = rows >= 577
    copies = 1 if many else max(1, int(COLD_BYTES / (2 * n * k)))
    x, bias = torch.randn(rows, k).bfloat16(), torch.randn(n).bfloat16()
    weight = (torch.randn(n, k) * 0.02).bfloat16()
    weights = cycle([weight.clone() for _ in range(copies)])
    first = kernels.QuantizedWeight.of(weight)
    # In large pages, as `quantize_int8` places them.
    places = copy_to_large_pages([first.packed] * (2 * copies))
    quantized = cycle([replace(first, packed=packed) for packed in places])
    activation = "gelu" if gelu else None
    contenders = {
        "blip_fast": lambda: kernels.linear_int8(x, next(quantized), bias, activation),
        "torch bf16": lambda: (
            F.gelu(F.linear(x, next(weights), bias)) if gelu else F.linear(x, next(weights), bias)
        ),
    }
    if weight.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = cycle([torch.ops.mkldnn._reorder_linear_weight(weight) for _ in range(copies)])
        after = ("gelu", [], "none") if gelu else ("none", [], "")
        contenders["oneDNN bf16, packed"] = lambda: torch.ops.mkldnn._linear_pointwise(
            x, next(packed), bias, *after
        )
    name = f"linear_int8{' + GELU' if gelu else ''} [{rows}, {k}] -> {n}"
    amount, unit = (2 * rows * k * n, "FLOP") if many else (n * k, "byte")
    return Case(name, contenders, amount, unit, allowed=ALLOWED)


if __name__ == "__main__":
    main(cases())
