"""A tiny model, and one step through all its parts: tests run it whole, compiled and on devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from factories import random_med, tiny_config
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from blip_fast.med.blip import MED
from blip_fast.text import PackedText, pack

TEXTS = pack([[101, 7, 8, 9, 102], [101, 3, 102], [101, 20, 21, 22, 23, 24, 102]])
INDEX = torch.tensor([1, 0, 1])


def model_of(device: str, dtype: torch.dtype) -> MED:
    return random_med("pretrain", config=tiny_config("pretrain")).to(device, dtype)


def images(device: str, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 32, 32, generator=generator).to(device, dtype)


def step(model: MED, pixels: Tensor, texts: PackedText, index: Tensor) -> Tensor:
    """A loss through vision, both text transformers and the head."""
    memory = model.remember(model.vision(pixels))
    match = model.match_logits(texts.starting_with(127), memory, index)
    return model.losses(texts.starting_with(126), memory, index, 0.1).sum() + match[:, 1].sum()


def inputs(device: str, dtype: torch.dtype) -> tuple[Tensor, PackedText, Tensor]:
    """What a step takes beside the model."""
    return images(device, dtype), TEXTS.to(device), INDEX.to(device)


def compiled(function: Callable) -> tuple[Callable, set[str]]:
    """Whole, or an error; and a set that gets the names of our operators, forward and backward."""
    names: set[str] = set()

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable:
        targets = [node.target for node in graph.graph.nodes]
        names.update(str(t) for t in targets if getattr(t, "namespace", "") == "blip_fast")
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=record)
    return torch.compile(function, fullgraph=True, backend=backend), names
