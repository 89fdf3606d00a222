"""What a text layer may look at: the text itself, and the memory of an image or a question.

One loop over the layers serves every mode, because a mode is nothing but a pair of these: packed
texts all at once, or one new token of each live sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from blip_fast import kernels
from blip_fast.config import TextConfig
from blip_fast.text import PackedText


class Past(Protocol):
    """The tokens of its own sequence that a token sees."""

    def attend(self, qkv: Tensor, layer: int) -> Tensor:
        """[T, 3, H, D] -> [T, H, D]."""


class Memory(Protocol):
    """What a text is grounded in."""

    def attend(self, q: Tensor, layer: int, branch: int) -> Tensor:
        """[T, H, D] -> [T, H, D]; `branch` is the side of a twin cross-attention, else 0."""


@dataclass(frozen=True)
class SelfCache:
    """Keys and values of live sequences, [layers, rows, positions, 2, heads, head_width]."""

    pairs: Tensor

    @classmethod
    def empty(
        cls, config: TextConfig, rows: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> SelfCache:
        """A cache of zeros for so many sequences of so many tokens at most."""
        shape = (config.depth, rows, positions, 2, config.heads, config.head_width)
        # Zeros, not whatever memory held: a masked key still meets the query, and NaN times 0 is
        # NaN.
        return cls(torch.zeros(shape, dtype=dtype, device=device))

    def write(self, layer: int, rows: Tensor, positions: Tensor, qkv: Tensor) -> None:
        """Put the keys and values of tokens at their rows and positions."""
        self.pairs[layer].index_put_((rows, positions), qkv[:, 1:])


@dataclass(frozen=True)
class PackedPast:
    """Packed texts, all tokens at once; kept in a cache where generation goes on from them.

    Attributes:
        rows: [T] int64, the cache row of each token; given with `cache`.
    """

    text: PackedText
    causal: bool
    cache: SelfCache | None = None
    rows: Tensor | None = None

    def attend(self, qkv: Tensor, layer: int) -> Tensor:
        if self.cache is not None and self.rows is not None:
            self.cache.write(layer, self.rows, self.text.positions, qkv)
        return kernels.attention(qkv, self.text.offsets, self.text.max_length, self.causal)


@dataclass(frozen=True)
class StepPast:
    """The newest token of each of some live sequences.

    Attributes:
        rows: [B] int64, the row of the cache that each sequence writes.
        ancestors: [B, P] int64, see `kernels.decode_attention`.
        positions: [B] int64, the place of the newest token.
        lengths: [B] int64, one more than that.
    """

    cache: SelfCache
    rows: Tensor
    ancestors: Tensor
    positions: Tensor
    lengths: Tensor

    def attend(self, qkv: Tensor, layer: int) -> Tensor:
        self.cache.write(layer, self.rows, self.positions, qkv)
        return kernels.decode_attention(
            qkv[:, 0], self.cache.pairs[layer], self.ancestors, self.lengths
        )


@dataclass(frozen=True)
class PackedMemory:
    """Packed texts, each pointing at its memory.

    Attributes:
        pairs: [layers * branches, M, K, 2, H, D], in one tensor or in one a layer and branch.
        index: [N] int64; with twin cross-attention [2, N], the memory of each side.
        offsets: [N + 1] int32, of the texts.
        key_lengths: [M] int64, where memories are of unequal length.
    """

    pairs: Tensor | tuple[Tensor, ...]
    index: Tensor
    offsets: Tensor
    key_lengths: Tensor | None = None

    def attend(self, q: Tensor, layer: int, branch: int) -> Tensor:
        sides = [self.index] if self.index.ndim == 1 else list(self.index)
        pairs = self.pairs[layer * len(sides) + branch]
        return kernels.cross_attention(q, pairs, self.offsets, sides[branch], self.key_lengths)

    def of_one_token_each(self) -> PackedMemory:
        """The same memories for texts of which one token each is left."""
        offsets = torch.arange(
            len(self.offsets), dtype=self.offsets.dtype, device=self.offsets.device
        )
        return replace(self, offsets=offsets)


@dataclass(frozen=True)
class StepMemory:
    """One token of each live sequence, each pointing at its memory; attributes as above.

    There is no twin here: NLVR2 writes no texts.
    """

    pairs: Tensor
    index: Tensor
    key_lengths: Tensor | None = None

    def attend(self, q: Tensor, layer: int, branch: int) -> Tensor:
        return kernels.decode_cross_attention(q, self.pairs[layer], self.index, self.key_lengths)
