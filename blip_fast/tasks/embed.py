"""Embeddings: the aligned, normalised ITC features of images and of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast.decoding.limit import Limit, in_parts
from blip_fast.images import ImageOptions, Picture
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.match import encode, warn_of_failures
from blip_fast.tasks.views import in_batches
from blip_fast.text import Tokenizer, pack

# Texts encoded at once: without an image they are short rows, so many fit.
_TEXT_BATCH = 128


def embed_images(
    model: MED, images: Sequence[Any], image_options: ImageOptions, batch_size: int
) -> Tensor:
    """[N, E] float32 on the host; a row of NaN where an image cannot be read, or is too large."""

    def look(part: Sequence[tuple[int, Tensor]]) -> Tensor:
        with inference(model.device):
            # The feature alone: nothing is projected for texts that will not come.
            tokens = model.vision(torch.stack([pixels for _, pixels in part]).to(model.device))
            return model.image_feature(tokens).cpu()

    features = empty_features(len(images), model)
    failures: dict[int, Picture] = {}
    for places, made in in_batches(model, look, images, image_options, batch_size, failures):
        features[places] = made
    warn_of_failures(failures)
    return features


def embed_texts(model: MED, tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> Tensor:
    """[T, E] float32 on the host.

    Raises:
        torch.OutOfMemoryError: where memory does not suffice for one text alone.
    """
    sequences = encode(tokenizer, texts, "[CLS]", max_length).tolist()

    def read(part: Sequence[int]) -> Tensor:
        packed = pack([sequences[place] for place in part]).to(model.device)
        with inference(model.device):
            return model.text_feature(packed).cpu()

    features = empty_features(len(texts), model)
    limit = Limit(model, "texts", _TEXT_BATCH)
    for part, made, reason in in_parts(read, range(len(texts)), limit):
        if made is None:
            raise torch.OutOfMemoryError(f"text {part[0]} alone is too much: {reason}")
        features[list(part)] = made
    return features


def features_of(memory: ImageMemory) -> Tensor:
    """The features [N, E] of images that were seen, on the host.

    Raises:
        ValueError: where they were seen by a model that has none.
    """
    if memory.feature is None:
        raise ValueError(
            "these images were seen by a model without ITC features; see them with this one"
        )
    return memory.feature.cpu()


def empty_features(number: int, model: MED) -> Tensor:
    """[N, E] float32 on the host: NaN until something is known."""
    return torch.full((number, model.config.embed_width), torch.nan, dtype=torch.float32)


def similarity(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosines [N, T] of normalised features."""
    with torch.autocast(image_features.device.type, enabled=False):
        return F.linear(image_features, text_features)
