"""linear at the sizes of a base model: the MLP of 8 images, and one decoding step of 24 rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels


def cases() -> Iterator[Case]:
    for rows in (8 * 577, 24):
        x, weight = torch.randn(rows, 768).bfloat16(), torch.randn(3072, 768).bfloat16() * 0.02
        bias = torch.randn(3072).bfloat16()

        def ours(x=x, weight=weight, bias=bias):
            return kernels.linear(x, weight, bias, activation="gelu")

        def torch_in_turn(x=x, weight=weight, bias=bias):
            return F.gelu(F.linear(x, weight, bias))

        name = f"linear + GELU [{rows}, 768] -> 3072 bf16"
        contenders = {"blip_fast": ours, "torch": torch_in_turn}
        yield Case(name, contenders, 2 * rows * 768 * 3072, "FLOP")


if __name__ == "__main__":
    main(cases())
