"""What is kept of an image, or of a question, for all texts that will ever look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blip_fast.med.transformer import TextTransformer


@dataclass(frozen=True, repr=False)
class ImageMemory:
    """Images, seen once: all that captioning, matching and answering ever read of them.

    Attributes:
        pairs: [layers, images, tokens, 2, heads, head_width]: keys and values of every
            cross-attention, 36 KiB a token in a base model's bf16. NLVR2's twin cross-attention
            counts as two layers.
        feature: [images, embed_width], normalised: the ITC feature, where the model has one.
        seen_by: sha256 of the weights that saw them; empty where it is not known.
    """

    pairs: Tensor
    feature: Tensor | None
    seen_by: str = ""

    def __len__(self) -> int:
        return self.pairs.shape[1]

    def __repr__(self) -> str:
        size = f"{len(self)} images of {self.pairs.shape[2]} tokens, {self.nbytes / 1e6:.1f} MB"
        return f"ImageMemory({size}, {self.pairs.dtype} on {self.pairs.device})"

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and feature."""
        return self.pairs.nbytes + (0 if self.feature is None else self.feature.nbytes)

    def to(self, device: torch.device | str) -> ImageMemory:
        feature = None if self.feature is None else self.feature.to(device)
        return replace(self, pairs=self.pairs.to(device), feature=feature)

    @staticmethod
    def join(memories: Sequence[ImageMemory]) -> ImageMemory:
        """Several memories of one model as one, in order."""
        if len(memories) == 1:
            return memories[0]
        features = [m.feature for m in memories if m.feature is not None]
        pairs = torch.cat([m.pairs for m in memories], dim=1)
        feature = torch.cat(features) if features else None
        return replace(memories[0], pairs=pairs, feature=feature)


@dataclass(frozen=True)
class QuestionMemory:
    """Questions, encoded once: what an answer is grounded in.

    Attributes:
        pairs: [layers, questions, longest, 2, heads, head_width].
        key_lengths: [questions] int64: tokens of each question.
    """

    pairs: Tensor
    key_lengths: Tensor

    def __len__(self) -> int:
        return self.pairs.shape[1]


@dataclass(frozen=True)
class LiveMemory:
    """A memory through which gradients flow, of images or of questions.

    Attributes:
        pairs: layers * branches tensors [N, tokens, 2, heads, head_width]. They stay apart: in one
            tensor, the gradient of each layer would be one of all.
        key_lengths: [N] int64, of questions.
    """

    pairs: tuple[Tensor, ...]
    key_lengths: Tensor | None = None


def project_live(transformer: TextTransformer, tokens: Tensor) -> tuple[Tensor, ...]:
    """As `project_memory`, differentiable: the `pairs` of a `LiveMemory`."""
    layers = transformer.cross_attentions
    return tuple(pair for layer in layers for pair in layer.project(tokens))


def project_memory(transformer: TextTransformer, tokens: Tensor) -> Tensor:
    """Keys and values of tokens [N, K, width] for every cross-attention of a text transformer.

    Without a gradient: the result is filled in place, where stacking would hold it twice.

    Returns:
        [layers * branches, N, K, 2, H, D].
    """
    pairs = tokens.new_empty(memory_shape(transformer, *tokens.shape[:2]))
    project_into(transformer, tokens, pairs, slice(None))
    return pairs


def project_into(
    transformer: TextTransformer, tokens: Tensor, pairs: Tensor, places: Tensor | slice
) -> None:
    """The same into some places of a larger memory [layers * branches, M, K, 2, H, D]."""
    layers = transformer.cross_attentions
    branches = layers[0].branches
    with torch.no_grad():
        for number, layer in enumerate(layers):
            for branch, pair in enumerate(layer.project(tokens)):
                pairs[number * branches + branch, places] = pair


def memory_shape(transformer: TextTransformer, images: int, tokens: int) -> tuple[int, ...]:
    """The shape of the `pairs` of some images of so many tokens each."""
    config, layers = transformer.config, transformer.cross_attentions
    depth = len(layers) * layers[0].branches
    return (depth, images, tokens, 2, config.heads, config.head_width)
