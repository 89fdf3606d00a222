"""Model FLOPs of a step, counted from the shapes that really pass, and the device's peak.

    linear, R rows from K to N channels        2 R K N
    attention, queries Q against K keys        4 Q K W, half of it where it is causal
    gradient of a weight, of an input          as much as the forward pass, each

Counted are linear layers, self- and cross-attention and the LM head, with the tokens a batch really
has, in the online model and in momentum copies. Texts of a batch count as equally long. Not
counted: what activation checkpointing repeats, similarities, norms, the optimizer.

MFU = model FLOPs of a process / (seconds * peak of its device).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blip_fast.med.blip import MED
from blip_fast.med.layers import FeedForward, Linear
from blip_fast.med.transformer import TextLayer
from blip_fast.med.vision import VisionBlock

# Dense bfloat16 FLOP/s of data sheets, by a part of the device's name; the longest part wins.
_GPU_PEAKS = {
    "A100": 312e12, "A10": 125e12, "A40": 150e12, "A6000": 155e12, "L4": 121e12, "L40S": 362e12,
    "RTX 3090": 71e12, "RTX 4090": 165e12, "H100": 989e12, "H100 PCIe": 756e12, "H200": 989e12,
    "GH200": 989e12, "B200": 2250e12, "GB200": 2500e12,
}  # fmt: skip


class FlopCounter:
    """Counts the forward passes of an objective's models, with the gradients they will have.

    Attributes:
        total: FLOPs so far.
    """

    def __init__(self, objective: nn.Module) -> None:
        self.total, self._counts = 0, False
        for model in [module for module in objective.modules() if isinstance(module, MED)]:
            # Feed-forward layers run as one operation, not as calls of their two parts.
            wide = [m for m in model.modules() if isinstance(m, (VisionBlock, FeedForward))]
            joined = {part for module in wide for part in (module.fc1, module.fc2)}
            for module in model.modules():
                if isinstance(module, Linear) and module not in joined:
                    module.register_forward_hook(self._linear)
                elif isinstance(module, VisionBlock):
                    module.register_forward_hook(self._vision_block)
                elif isinstance(module, TextLayer):
                    module.register_forward_hook(self._text_attention)
                elif isinstance(module, FeedForward):
                    module.register_forward_hook(self._feed_forward)
            if hasattr(model, "lm_head"):
                vocabulary = model.config.text.vocab_size
                hook = partial(self._language_model_head, vocabulary)
                model.lm_head.dense.register_forward_hook(hook)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs in the block: a forward pass, not the repetitions in the backward."""
        self._counts = True
        try:
            yield
        finally:
            self._counts = False

    def _add(self, flops: float, gradients: int) -> None:
        self.total += int(flops) * (1 + gradients)

    def _linear(self, layer: Linear, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._counts:
            self._product(layer, inputs[0])

    def _feed_forward(self, mlp: FeedForward, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._counts:
            self._product(mlp.fc1, inputs[0])
            self._product(mlp.fc2, inputs[0])

    def _vision_block(
        self, block: VisionBlock, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]
    ) -> None:
        if self._counts:
            images, tokens, width = inputs[0].shape
            self._add(4 * images * tokens**2 * width, 2 * outputs[0].requires_grad)
            self._product(block.fc1, outputs[0])
            self._product(block.fc2, outputs[0])

    def _product(self, layer: Linear, x: Tensor) -> None:
        """A layer's product with the rows of `x`, or with as many of another width."""
        rows = x.numel() // x.shape[-1]
        gradients = layer.weight.requires_grad + x.requires_grad if torch.is_grad_enabled() else 0
        self._add(2 * rows * layer.in_features * layer.out_features, gradients)

    def _text_attention(self, layer: TextLayer, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not self._counts:
            return
        x, _, past, memory, *_ = inputs
        tokens, width = x.shape
        keys = tokens / max(1, len(past.text)) / (2 if past.causal else 1)
        scores = tokens * keys
        if memory is not None:  # the last layer may go on with each text's first token alone
            scores += len(output) * layer.cross_attention.branches * memory.pairs[0].shape[1]
        self._add(4 * width * scores, 2 * output.requires_grad)

    def _language_model_head(
        self, vocabulary: int, layer: Linear, inputs: tuple[Any, ...], output: Tensor
    ) -> None:
        if self._counts:
            rows = output.numel() // layer.out_features
            self._add(2 * rows * layer.out_features * vocabulary, 2 * output.requires_grad)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a device could reach: a GPU's data sheet in bfloat16, else a short matmul."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = [part for part in _GPU_PEAKS if part in name]
        if known:
            return _GPU_PEAKS[max(known, key=len)]
    return _measured_peak(device, dtype)


def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of several square products, large enough to be bound by arithmetic."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):  # the first warms up
        _finish(device)
        start = time.perf_counter()
        a @ a
        _finish(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
