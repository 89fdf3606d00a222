"""int8 for inference: the matrices of a model's blocks become bytes, the rest stays floating."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blip_fast import kernels
from blip_fast.kernels.linear import Activation
from blip_fast.med.blip import MED
from blip_fast.med.layers import Linear
from blip_fast.med.pages import copy_to_large_pages

Quantize = Literal["int8"]


class Int8Linear(nn.Module):
    """In place of a `Linear`; nothing of it can be trained."""

    packed: Tensor
    scales: Tensor
    starts: Tensor
    bias: Tensor | None

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        weight = kernels.QuantizedWeight.of(linear.weight)
        self.width = weight.width
        for name in ("packed", "scales", "starts"):
            self.register_buffer(name, getattr(weight, name))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(
        self, x: Tensor, activation: Activation | None = None, residual: Tensor | None = None
    ) -> Tensor:
        weight = kernels.QuantizedWeight(self.packed, self.scales, self.starts, self.width)
        return kernels.linear_int8(x, weight, self.bias, activation, residual)


def quantize_int8(model: MED) -> MED:
    """Replace every `Linear` of the vision blocks and the text layers, in place.

    The patch embedding, the heads and the embeddings stay as they are: they are a fiftieth of the
    work, and the language model's head alone decides between words whose scores are close.

    Raises:
        ValueError: where the model is not on a CPU, or its dtype is not float32 or bfloat16.
    """
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"int8 needs a model of float32 or bfloat16 on a CPU; this one is {model.dtype} on "
            f"{model.device}"
        )
    stacks = [model.vision.blocks]
    for name in ("text_encoder", "text_decoder"):
        if hasattr(model, name):
            stacks.append(getattr(model, name).layers)
    made: dict[nn.Module, Int8Linear] = {}  # a decoder shares modules with its encoder
    for stack in stacks:
        for parent in list(stack.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Linear):
                    made[child] = made.get(child) or Int8Linear(child)
                    setattr(parent, name, made[child])
    quantised = list(made.values())
    copies = copy_to_large_pages([linear.packed for linear in quantised])
    for linear, packed in zip(quantised, copies, strict=True):
        linear.packed = packed
    return model.requires_grad_(False)


def is_quantized(model: nn.Module) -> bool:
    """Whether any matrix of a model is int8."""
    return any(isinstance(module, Int8Linear) for module in model.modules())
