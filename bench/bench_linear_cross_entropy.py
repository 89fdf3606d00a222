"""LM head and smoothed loss of 240 tokens, the texts of a training batch of 16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels

TOKENS, VOCABULARY, WIDTH = 240, 30524, 768


def cases() -> Iterator[Case]:
    hidden, weight = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH) * 0.02
    bias, targets = torch.zeros(VOCABULARY), torch.randint(0, VOCABULARY, (TOKENS,))

    def with_logits() -> torch.Tensor:
        logits = F.linear(hidden, weight, bias)
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)

    contenders = {
        "blip_fast": lambda: kernels.linear_cross_entropy(hidden, weight, bias, targets, 0.1),
        "torch, logits stored": with_logits,
    }
    amount = 2 * TOKENS * VOCABULARY * WIDTH
    yield Case("linear cross-entropy, 240 x 30524, fp32", contenders, amount, "FLOP")


if __name__ == "__main__":
    main(cases())
