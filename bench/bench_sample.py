"""The choice of a token for 40 samples: penalty, top-k and top-p of a vocabulary of 30,524."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import Case, main
from blip_fast import kernels

ROWS, VOCABULARY = 40, 30524


def cases() -> Iterator[Case]:
    logits, uniform = torch.randn(ROWS, VOCABULARY) * 3, torch.rand(ROWS)

    def top_k_alone() -> torch.Tensor:
        ranked, tokens = logits.topk(50)
        reached = ranked.softmax(1).double().cumsum(1)
        kept = (reached - ranked.softmax(1) < 0.9) * ranked.softmax(1).double()
        place = (kept.cumsum(1) <= uniform[:, None] * kept.sum(1, keepdim=True)).sum(1)
        return tokens.gather(1, place[:, None])[:, 0].float()

    contenders = {
        "blip_fast": lambda: kernels.sample(logits, uniform, 1.0, 50, 0.9).float(),
        "torch.topk first": top_k_alone,
    }
    yield Case("sample, 40 x 30524, top-k 50, top-p 0.9", contenders, logits.nbytes, "byte")


if __name__ == "__main__":
    main(cases())
