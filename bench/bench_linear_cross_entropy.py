"""LM head and smoothed loss of 240 tokens, the texts of a training batch of 16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels

TOKENS, VOCABULARY, WIDTH = 240, 30524, 768


def cases() -> Iterator[Case]:
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.randn(TOKENS, WIDTH).to(dtype)
        weight = (torch.randn(VOCABULARY, WIDTH) * 0.02).to(dtype)
        arguments = (hidden, weight, torch.zeros(VOCABULARY, dtype=dtype), targets)

        def with_logits(hidden=hidden, weight=weight, bias=arguments[2]) -> torch.Tensor:
            logits = F.linear(hidden, weight, bias).float()
            return F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)

        contenders = {
            "blip_fast": lambda a=arguments: kernels.linear_cross_entropy(*a, 0.1).to(a[0].dtype),
            "torch, logits stored": lambda f=with_logits, d=dtype: f().to(d),
        }
        amount = 2 * TOKENS * VOCABULARY * WIDTH
        name = f"linear cross-entropy, {TOKENS} x {VOCABULARY}, {dtype}"
        yield Case(name, contenders, amount, "FLOP")


if __name__ == "__main__":
    main(cases())
