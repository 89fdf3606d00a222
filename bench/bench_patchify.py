"""patchify at 384 px: alone, and against the convolution that the reference embeds patches with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels
from blip_fast.config import IMAGE_MEAN, IMAGE_STD
from blip_fast.kernels.patchify import reference


def cases() -> Iterator[Case]:
    images = torch.randint(0, 256, (8, 3, 384, 384), dtype=torch.uint8)
    for dtype in (torch.bfloat16, torch.float32):
        arguments = (images, 16, IMAGE_MEAN, IMAGE_STD, dtype)
        contenders = {
            "blip_fast": lambda a=arguments: kernels.patchify(*a),
            "torch": lambda a=arguments: reference.patchify(*a),
        }
        amount = images.numel() * (1 + dtype.itemsize)
        yield Case(f"patchify, 8 images of 384 px, {dtype}", contenders, amount, "byte")

    weight, bias = torch.randn(768, 3, 16, 16) * 0.02, torch.randn(768)
    shift = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1)
    scale = torch.tensor(IMAGE_STD).view(1, 3, 1, 1)

    def ours() -> torch.Tensor:
        rows = kernels.patchify(images, 16, IMAGE_MEAN, IMAGE_STD, torch.float32)
        return kernels.linear(rows, weight.view(768, -1), bias)

    def convolution() -> torch.Tensor:
        pixels = (images.float() / 255 - shift) / scale
        return F.conv2d(pixels, weight, bias, stride=16).flatten(2).transpose(1, 2).flatten(0, 1)

    amount = 2 * 8 * 576 * 768 * 768
    contenders = {"patchify + linear": ours, "normalise + conv2d": convolution}
    yield Case("patch embedding, 8 images of 384 px, fp32", contenders, amount, "FLOP")


if __name__ == "__main__":
    main(cases())
