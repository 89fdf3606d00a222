"""Cross-attention of 32 texts on one image, against the repeated memory of the references."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels

HEADS, WIDTH, TOKENS, TEXTS, LENGTH = 12, 64, 577, 32, 12


def cases() -> Iterator[Case]:
    q = torch.randn(TEXTS * LENGTH, HEADS, WIDTH).bfloat16()
    memory = torch.randn(1, TOKENS, 2, HEADS, WIDTH).bfloat16()
    offsets = torch.tensor([0, *accumulate([LENGTH] * TEXTS)], dtype=torch.int32)
    index = torch.zeros(TEXTS, dtype=torch.int64)

    def repeated() -> torch.Tensor:
        k, v = memory.repeat_interleave(TEXTS, 0).permute(2, 0, 3, 1, 4)
        rows = q.view(TEXTS, LENGTH, HEADS, WIDTH).transpose(1, 2)
        return F.scaled_dot_product_attention(rows, k, v).transpose(1, 2).flatten(0, 1)

    contenders = {
        "blip_fast": lambda: kernels.cross_attention(q, memory, offsets, index),
        "repeated K/V, torch SDPA": repeated,
    }
    amount = 4 * TEXTS * LENGTH * HEADS * TOKENS * WIDTH
    yield Case("cross-attention, 32 texts of 12 tokens on 1 image", contenders, amount, "FLOP")


if __name__ == "__main__":
    main(cases())
