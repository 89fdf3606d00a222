"""Self-attention of images, of a packed batch of texts, and with its gradient for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels
from blip_fast.kernels.attention import reference

HEADS, WIDTH = 12, 64
Attend = Callable[[Tensor], Tensor]


def sdpa(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def plain(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


CONTENDERS: dict[str, Attend] = {
    "blip_fast": kernels.attention,
    "torch SDPA": sdpa,
    "plain matmuls": plain,
}


def images(batch: int, tokens: int, dtype: torch.dtype) -> Case:
    qkv = torch.randn(batch, tokens, 3, HEADS, WIDTH).to(dtype)
    amount = 4 * batch * HEADS * tokens**2 * WIDTH
    contenders = {name: lambda f=f: f(qkv) for name, f in CONTENDERS.items()}
    return Case(f"attention, {batch} x {tokens}, {dtype}", contenders, amount, "FLOP")


def training(batch: int, tokens: int, dtype: torch.dtype) -> Case:
    """Forward and backward; the result compared is the gradient."""
    with torch.inference_mode(False):
        qkv = torch.randn(batch, tokens, 3, HEADS, WIDTH).to(dtype).requires_grad_()
        grad = torch.randn(batch, tokens, HEADS, WIDTH).to(dtype)

    def step(attend: Attend) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(attend(qkv), qkv, grad)[0]

    # Two products forward, and five backward, of which one makes the scores again.
    amount = 14 * batch * HEADS * tokens**2 * WIDTH
    contenders = {name: lambda f=f: step(f) for name, f in CONTENDERS.items()}
    return Case(f"attention, training, {batch} x {tokens}, {dtype}", contenders, amount, "FLOP")


def texts(dtype: torch.dtype, causal: bool) -> Case:
    lengths = [6, 9, 12, 35, 8, 11, 10, 7] * 4
    packed = torch.randn(sum(lengths), 3, HEADS, WIDTH).to(dtype)
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    contenders = {
        "blip_fast": lambda: kernels.attention(packed, offsets, max(lengths), causal),
        "padded SDPA": lambda: reference.packed_attention(packed, offsets, max(lengths), causal),
        "one text at a time": lambda: torch.cat(
            [reference.dense_attention(p[None], causal)[0] for p in packed.split(lengths)]
        ),
    }
    amount = sum(4 * HEADS * n**2 * WIDTH for n in lengths)
    name = f"attention, 32 {'causal' if causal else 'packed'} texts, {dtype}"
    return Case(name, contenders, amount, "FLOP")


def cases() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        yield images(8, 577, dtype)
        yield images(16, 197, dtype)
        yield texts(dtype, causal=False)
        yield texts(dtype, causal=True)
        yield training(16, 197, dtype)
        yield training(8, 577, dtype)


if __name__ == "__main__":
    main(cases())
