"""One decoding step's attention to memory: 8 images, 3 beams each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels

HEADS, WIDTH, TOKENS, IMAGES, BEAMS = 12, 64, 577, 8, 3


def cases() -> Iterator[Case]:
    q = torch.randn(IMAGES * BEAMS, HEADS, WIDTH).bfloat16()
    memory = torch.randn(IMAGES, TOKENS, 2, HEADS, WIDTH).bfloat16()
    index = torch.arange(IMAGES).repeat_interleave(BEAMS)
    k, v = memory.permute(2, 0, 3, 1, 4)
    k_of_beams, v_of_beams = k.repeat_interleave(BEAMS, 0), v.repeat_interleave(BEAMS, 0)

    def beams_as_rows() -> torch.Tensor:
        rows = q.view(IMAGES, BEAMS, HEADS, WIDTH).transpose(1, 2)
        return F.scaled_dot_product_attention(rows, k, v).transpose(1, 2).flatten(0, 1)

    def memory_of_every_beam() -> torch.Tensor:
        return F.scaled_dot_product_attention(q[:, :, None], k_of_beams, v_of_beams)[:, :, 0]

    contenders = {
        "blip_fast": lambda: kernels.decode_cross_attention(q, memory, index),
        "torch, beams as rows": beams_as_rows,
        "torch, K/V of every beam": memory_of_every_beam,
    }
    yield Case("decode cross-attention, 8 x 3 beams, bf16", contenders, memory.nbytes, "byte")


if __name__ == "__main__":
    main(cases())
