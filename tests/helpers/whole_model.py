"""A tiny model, and one step through all its parts: tests run it whole, compiled and on devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from factories import random_med, tiny_config
from functorch.compile import make_boxed_func
from tolerance import assert_close_as_torch, wide
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.med.blip import MED
from blip_fast.text import PackedText, pack

# Enough of them that the mean error of a few numbers each is one of many.
TEXTS = pack([[101, *((7 * n + 11 * i) % 90 + 3 for i in range(n % 7)), 102] for n in range(12)])
INDEX = torch.arange(1, 13) % 2


def model_of(device: str, dtype: torch.dtype) -> MED:
    with torch.device("cpu"):
        return random_med("pretrain", config=tiny_config("pretrain")).to(device, dtype)


def images(device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape, options = (2, 3, 32, 32), {"generator": generator, "dtype": torch.uint8}
    return torch.randint(256, shape, device="cpu", **options).to(device)


def step(model: MED, pixels: Tensor, texts: PackedText, index: Tensor) -> Tensor:
    """The sum of all three losses: ITC in both directions, ITM and LM."""
    tokens = model.vision(pixels)
    of_images, of_texts = model.image_feature(tokens)[index], model.text_feature(texts)
    memory = model.remember(tokens)
    match = model.match_logits(texts.starting_with(127), memory, index)
    loss = model.losses(texts.starting_with(126), memory, index, 0.1).sum()
    loss = loss + F.cross_entropy(match, index)  # some match, some do not
    for one, other in ((of_images, of_texts), (of_texts, of_images)):
        ends = one.detach(), other.detach(), model.temperature(), index, index.clone()
        loss = loss + kernels.contrastive(one, *ends, 0.4).sum()
    return loss


def inputs(device: str) -> tuple[Tensor, PackedText, Tensor]:
    """What a step takes beside the model."""
    return images(device), TEXTS.to(device), INDEX.to(device)


# What the model says, by name, of one device and dtype; on the CPU. Names that begin alike, before
# a colon, are judged together.


def answers(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of images seen, of texts, and of both."""
    model, (pixels, texts, index) = model_of(device, dtype), inputs(device)
    with torch.no_grad():
        memory = model.see(pixels)
        assert memory.feature is not None
        result = {
            "memory": memory.pairs,
            "feature": memory.feature,
            "text feature": model.text_feature(texts),
            "match": model.match_logits(texts.starting_with(127), memory, index),
            "losses": model.losses(texts.starting_with(126), memory, index, 0.1),
        }
    return {name: t.cpu() for name, t in result.items()}


def gradients(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of a training step and every parameter; but those of few numbers, of which the reference's
    error may be next to nothing by chance: ITM's bias and the temperature."""
    model = model_of(device, dtype).requires_grad_(True)
    step(model, *inputs(device)).backward()
    few = ("itm_head.bias", "temperature.value")
    assert all(p.grad is not None for n, p in model.named_parameters() if n in few)
    return {
        f"gradients: {n}": p.grad.cpu()
        for n, p in model.named_parameters()
        if p.grad is not None and n not in few
    }


def texts_written(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tokens, and their log-probabilities, of a greedy search and of one with 3 beams."""
    model, prompts, result = model_of(device, dtype), pack([[126], [126, 5, 6]]), {}
    memory, index = model.see(images(device)), torch.arange(2, device=device)
    for beams in (1, 3):
        options = SearchOptions(num_beams=beams, max_length=6, min_length=5, graphs=False)
        written = generate(model, memory, index, prompts.to(device), options)
        for number, (text, *_) in enumerate(written):
            name = f"text {number} of {beams} beams"
            result[f"{name}, tokens"] = torch.tensor(text.token_ids, device="cpu")
            scores = torch.tensor(text.token_log_probabilities, device="cpu")
            result[f"log-probabilities: {name}"] = scores
    return result


def assert_agrees(
    results: Callable[[str, torch.dtype], dict[str, Tensor]], device: str, dtype: torch.dtype
) -> None:
    """What `device` says is what the CPU's reference says, by the rule of `tolerance.py`.

    Truth is the reference in higher precision; the error allowed is the reference's in `dtype`.
    Tensors that are judged together are so as one vector, each scaled to values around 1: of a
    hundred tensors apart, one or another would err more by chance than twice the reference does.
    """
    actual = results(device, dtype)
    with kernels.use("reference"), torch.device("cpu"):
        truth, same = results("cpu", wide(dtype)), results("cpu", dtype)
    assert actual.keys() == truth.keys() and len(actual) > 4
    groups: dict[str, list[str]] = {}
    for name, value in actual.items():
        if value.is_floating_point():
            groups.setdefault(name.partition(":")[0], []).append(name)
        else:
            assert value.equal(truth[name]), f"{name}: {value} and {truth[name]}"
    truth = {name: t.to(wide(dtype)) if t.is_floating_point() else t for name, t in truth.items()}
    for group, names in groups.items():
        # By powers of two, which round nothing.
        scales = {n: 2.0 ** -math.frexp(truth[n].abs().max().item())[1] for n in names}
        vectors = (
            torch.cat([values[n].flatten() * scales[n] for n in names])
            for values in (actual, same, truth)
        )
        assert_close_as_torch(group, *vectors)


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
