"""The filter's scores of texts, each against its own picture's memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from blip_fast.capfilt.rows import Scores
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.model import Blip


def score_texts(
    filter_: Blip, memory: ImageMemory, texts: Sequence[str], owners: Sequence[int], max_length: int
) -> list[Scores]:
    """Score texts against pictures.

    Args:
        memory: the filter's, of the pictures.
        owners: for each text the place of its picture in the memory.
        max_length: tokens of a text that are read.

    Returns:
        one for each text.
    """
    if not texts:
        return []
    pairs = [(owner, number) for number, owner in enumerate(owners)]
    limits = {"max_length": max_length, "batch_size": len(memory)}
    with warnings.catch_warnings():
        # That a text was cut is recorded with it; here it would be said again for every batch.
        warnings.filterwarnings("ignore", message=r".* texts were cut to .* tokens")
        logits = filter_.match(memory, texts, pairs, score="logits", **limits)
        image_features = filter_.embed_images(memory)
        text_features = filter_.embed_texts(texts, max_length=max_length)
    cosines = (image_features[list(owners)] * text_features).sum(1)
    columns = (logits.softmax(1)[:, 1].tolist(), logits[:, 1].tolist(), cosines.tolist())
    return [Scores(*values) for values in zip(*columns, strict=True)]


def are_cut(filter_: Blip, texts: Sequence[str], max_length: int) -> list[bool]:
    """Whether each text is longer than what the filter reads of it."""
    if not texts:
        return []
    # [CLS], [ENC] and [DEC] take one token each, so any of them tells.
    return filter_.tokenizer.encode(texts, "[ENC]", max_length).truncated.tolist()
