"""add_layernorm at the sizes of a base model: 8 images of 577 tokens, 24 live captions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels

EPS = 1e-6


def cases() -> Iterator[Case]:
    for rows in (8 * 577, 24):
        for dtype in (torch.bfloat16, torch.float32):
            x, residual = torch.randn(2, rows, 768).to(dtype)
            weight, bias = torch.randn(2, 768).to(dtype)

            def ours(x=x, residual=residual, weight=weight, bias=bias):
                return kernels.add_layernorm(x, residual, weight, bias, EPS)[1]

            def torch_in_turn(x=x, residual=residual, weight=weight, bias=bias):
                return F.layer_norm(x + residual, (768,), weight, bias, EPS)

            # read x and the residual, write the sum and its norm
            amount = 4 * x.nbytes
            name = f"add_layernorm [{rows}, 768] {dtype}"
            yield Case(name, {"blip_fast": ours, "torch": torch_in_turn}, amount, "byte")


if __name__ == "__main__":
    main(cases())
