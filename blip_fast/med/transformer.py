"""The text transformer: one stack of post-norm layers that serves all four modes of the MED.

text encoder             [CLS], both directions, no memory
image-grounded encoder   [ENC], both directions, memory of an image
image-grounded decoder   [DEC], causal, memory of an image
question-grounded        [DEC], causal, memory of a question's states
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from blip_fast.config import TextConfig
from blip_fast.med.context import Memory, PackedMemory, PackedPast, Past
from blip_fast.med.layers import (
    CrossAttention,
    FeedForward,
    SelfAttention,
    TextEmbeddings,
    TwinCrossAttention,
)
from blip_fast.text import PackedText


class TextLayer(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward."""

    def __init__(self, config: TextConfig, memory_width: int, layer: int, twin: bool) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention: CrossAttention | TwinCrossAttention
        if twin:
            merges = layer >= config.depth // 2
            self.cross_attention = TwinCrossAttention(config, memory_width, merges)
        else:
            self.cross_attention = CrossAttention(config, memory_width)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        layer: int,
        past: Past,
        memory: Memory | None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """[T, W] -> [T, W], or where `rows` [N] are given the states of those tokens alone."""
        x = self.self_attention(x, past, layer, rows)
        if memory is not None:
            x = self.cross_attention(x, memory, layer)
        return self.mlp(x)


class TextTransformer(nn.Module):
    """Tokens to hidden states."""

    def __init__(self, config: TextConfig, memory_width: int, twin: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.layers = nn.ModuleList(
            TextLayer(config, memory_width, layer, twin) for layer in range(config.depth)
        )

    def forward(
        self, ids: Tensor, positions: Tensor, past: Past, memory: Memory | None = None
    ) -> Tensor:
        """[T] tokens at [T] positions -> [T, W] hidden states of the last layer."""
        x = self.embeddings(ids, positions)
        for number, layer in enumerate(self.layers):
            x = layer(x, number, past, memory)
        return x

    def first(self, text: PackedText, memory: PackedMemory | None = None) -> Tensor:
        """Packed texts, seen in both directions, to the last layer's state of each one's first
        token [N, W]. Of the last layer's other tokens nothing is computed but what it looks at."""
        x = self.embeddings(text.ids, text.positions)
        past = PackedPast(text, causal=False)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            if number < last:
                x = layer(x, number, past, memory)
            else:
                alone = None if memory is None else memory.of_one_token_each()
                x = layer(x, number, past, alone, text.offsets[:-1].long())
        return x

    @property
    def cross_attentions(self) -> list[CrossAttention | TwinCrossAttention]:
        """That of every layer."""
        return [cast(TextLayer, layer).cross_attention for layer in self.layers]

    def share_all_but_self_attention(self, other: TextTransformer) -> None:
        """Make this stack's other parameters those of `other` (BLIP, section 3.2)."""
        self.embeddings = other.embeddings
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.cross_attention = theirs.cross_attention
            mine.mlp = theirs.mlp
