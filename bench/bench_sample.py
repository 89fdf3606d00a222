"""The choice of a token: 40 samples, or 8 images of 3 beams, of a vocabulary of 30,524."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import Case, main
from blip_fast import kernels

ROWS, IMAGES, BEAMS, VOCABULARY = 40, 8, 3, 30524


def cases() -> Iterator[Case]:
    logits, uniform = torch.randn(ROWS, VOCABULARY) * 3, torch.rand(ROWS)

    def ranked_by_torch(top_k: int) -> torch.Tensor:
        if top_k:
            ranked, tokens = logits.topk(top_k)
        else:
            ranked, tokens = logits.sort(dim=1, descending=True)
        weights = (ranked.double() - ranked[:, :1].double()).exp()
        reached = weights.cumsum(1)
        weights = weights * (reached - weights < 0.9 * reached[:, -1:])
        threshold = uniform[:, None].double() * weights.sum(1, keepdim=True)
        place = (weights.cumsum(1) <= threshold).sum(1, keepdim=True)
        return tokens.gather(1, place)[:, 0].float()

    for top_k in (50, 0):
        contenders = {
            "blip_fast": lambda k=top_k: kernels.sample(logits, uniform, 1.0, k, 0.9).float(),
            "torch.topk or sort": lambda k=top_k: ranked_by_torch(k),
        }
        name = f"sample, {ROWS} x {VOCABULARY}, top-k {top_k}, top-p 0.9"
        yield Case(name, contenders, logits.nbytes, "byte")

    log_probs = torch.randn(IMAGES * BEAMS, VOCABULARY).log_softmax(1)
    scores = torch.randn(IMAGES, BEAMS)

    def of_all_continuations() -> torch.Tensor:
        total = log_probs.view(IMAGES, BEAMS, VOCABULARY) + scores[:, :, None]
        return total.view(IMAGES, -1).topk(2 * BEAMS)[0]

    contenders = {
        "blip_fast": lambda: kernels.beam_step(log_probs, scores, 2 * BEAMS)[0],
        "torch, add and topk": of_all_continuations,
    }
    name = f"beam step, {IMAGES} x {BEAMS} x {VOCABULARY}"
    yield Case(name, contenders, log_probs.nbytes, "byte")


if __name__ == "__main__":
    main(cases())
