"""Self-attention of 8 images at 384 px, and of a packed batch of texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels

HEADS, WIDTH = 12, 64


def cases() -> Iterator[Case]:
    qkv = torch.randn(8, 577, 3, HEADS, WIDTH).bfloat16()

    def eager() -> torch.Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1)
        return (weights @ v).transpose(1, 2)

    def sdpa() -> torch.Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    contenders = {"blip_fast": lambda: kernels.attention(qkv), "torch SDPA": sdpa, "eager": eager}
    amount = 4 * 8 * HEADS * 577**2 * WIDTH
    yield Case("attention, 8 x 577 tokens, bf16", contenders, amount, "FLOP")

    lengths = [6, 9, 12, 35, 8, 11, 10, 7] * 4
    packed = torch.randn(sum(lengths), 3, HEADS, WIDTH).bfloat16()
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)

    def one_by_one() -> torch.Tensor:
        parts = [kernels.attention(part[None])[0] for part in packed.split(lengths)]
        return torch.cat(parts)

    amount = sum(4 * HEADS * n**2 * WIDTH for n in lengths)
    contenders = {
        "blip_fast": lambda: kernels.attention(packed, offsets, max(lengths)),
        "one text at a time": one_by_one,
    }
    yield Case("attention, 32 packed texts, bf16", contenders, amount, "FLOP")


if __name__ == "__main__":
    main(cases())
