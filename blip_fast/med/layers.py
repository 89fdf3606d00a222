"""The pieces that vision and text layers are made of: parameters, and calls to the rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from blip_fast import kernels
from blip_fast.config import TextConfig
from blip_fast.kernels.linear import Activation

if TYPE_CHECKING:
    from blip_fast.med.context import Memory, Past


class Linear(nn.Linear):
    """y = activation(x W^T + b) + residual."""

    def forward(
        self, x: Tensor, activation: Activation | None = None, residual: Tensor | None = None
    ) -> Tensor:
        return kernels.linear(x, self.weight, self.bias, activation, residual)


def feed_forward(fc1: Linear, fc2: Linear, x: Tensor) -> Tensor:
    """fc2(GELU(fc1(x))), as one operation where gradients are wanted: it keeps less for them."""
    trainable = isinstance(fc1, Linear) and (x.requires_grad or fc1.weight.requires_grad)
    if trainable and torch.is_grad_enabled():
        return kernels.mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return fc2(fc1(x, activation="gelu"))


class LayerNorm(nn.Module):
    """LayerNorm alone, or joined to the addition before it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernels.layernorm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """x + residual, and its LayerNorm."""
        return kernels.add_layernorm(x, residual, self.weight, self.bias, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> Tensor:
        """LayerNorm of x + residual."""
        return kernels.layernorm_of_sum(x, residual, self.weight, self.bias, self.eps)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, leave out the update of some images."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> the same; what is kept is scaled so that the mean stays."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class TextEmbeddings(nn.Module):
    """Word and position vectors, summed and normalised; BLIP has no token types."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.norm = LayerNorm(config.width, config.layer_norm_eps)
        self.dropout = nn.Dropout(0.0)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """[T] and [T] -> [T, width]."""
        return self.dropout(self.norm.of_sum(self.word(ids), self.position(positions)))


class SelfAttention(nn.Module):
    """LN(proj(attention(x)) + x)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self.dropout = nn.Dropout(0.0)
        self.norm = LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, x: Tensor, past: Past, layer: int, rows: Tensor | None = None) -> Tensor:
        """[T, W] -> [T, W]; of `rows` [N] alone, where they are given, which all others see."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width))
        seen = past.attend(qkv, layer)
        if rows is not None:
            seen, x = seen[rows], x[rows]
        return self.norm.of_sum(self.dropout(self.proj(seen.flatten(1))), x)


class CrossAttention(nn.Module):
    """LN(proj(attention(x, memory)) + x); keys and values are projected once per memory."""

    branches = 1

    def __init__(self, config: TextConfig, memory_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.query = Linear(config.width, config.width)
        self.key_value = Linear(memory_width, 2 * config.width)
        self.proj = Linear(config.width, config.width)
        self.dropout = nn.Dropout(0.0)
        self.norm = LayerNorm(config.width, config.layer_norm_eps)

    def project(self, tokens: Tensor) -> list[Tensor]:
        """Keys and values of tokens [N, K, memory_width]: [N, K, 2, H, D], one a branch."""
        return [self.key_value(tokens).unflatten(-1, (2, self.heads, self.head_width))]

    def forward(self, x: Tensor, memory: Memory, layer: int) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, self.head_width))
        seen = memory.attend(q, layer, branch=0)
        return self.norm.of_sum(self.dropout(self.proj(seen.flatten(1))), x)


class TwinCrossAttention(nn.Module):
    """NLVR2's cross-attention: a branch for each of two images, then one LayerNorm.

    The lower half of the layers average the branches, the upper half merge them by a linear map
    (BLIP, section 5.4 and nlvr_encoder.py).
    """

    branches = 2

    def __init__(self, config: TextConfig, memory_width: int, merges: bool) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        width = config.width
        self.query = nn.ModuleList(Linear(width, width) for _ in range(2))
        self.key_value = nn.ModuleList(Linear(memory_width, 2 * width) for _ in range(2))
        self.proj = nn.ModuleList(Linear(width, width) for _ in range(2))
        self.merge = Linear(2 * width, width) if merges else None
        self.dropout = nn.Dropout(0.0)
        self.norm = LayerNorm(width, config.layer_norm_eps)

    def project(self, tokens: Tensor) -> list[Tensor]:
        """As for one branch, twice: any image may stand on either side."""
        shape = (2, self.heads, self.head_width)
        return [key_value(tokens).unflatten(-1, shape) for key_value in self.key_value]

    def forward(self, x: Tensor, memory: Memory, layer: int) -> Tensor:
        sides = []
        for branch, (query, proj) in enumerate(zip(self.query, self.proj, strict=True)):
            q = query(x).unflatten(-1, (self.heads, self.head_width))
            sides.append(proj(memory.attend(q, layer, branch).flatten(1)))
        if self.merge is None:
            merged = (sides[0] + sides[1]) / 2
        else:
            merged = self.merge(torch.cat(sides, dim=1))
        return self.norm.of_sum(self.dropout(merged), x)


class FeedForward(nn.Module):
    """LN(fc2(GELU(fc1(x))) + x)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)
        self.dropout = nn.Dropout(0.0)
        self.norm = LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm.of_sum(self.dropout(feed_forward(self.fc1, self.fc2, x)), x)
