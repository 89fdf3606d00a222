"""Matching: how well do texts and images belong together? ITM reads both, ITC compares features.

ITM is the judgement of the image-grounded encoder, a probability; ITC the cosine of two features,
cheap and comparable across a collection (BLIP, section 3.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from blip_fast.decoding.pairs import over_pairs
from blip_fast.images import Picture
from blip_fast.med.blip import MED
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.stream import ImageStream
from blip_fast.text import First, PackedText, Tokenizer

Score = Literal["probability", "logit", "logits"]


def match(
    model: MED,
    tokenizer: Tokenizer,
    images: ImageStream,
    texts: Sequence[str],
    pairs: Sequence[tuple[int, int]] | None,
    score: Score,
    max_length: int,
) -> Tensor:
    """ITM of all pairs [N, T], or of the named ones [P]; NaN where an image cannot be read."""
    wanted = wanted_pairs(len(images), len(texts), pairs)
    packed = encode(tokenizer, texts, grounded_token(model), max_length)
    both = judge(model, images, packed, wanted)
    warn_of_failures(images.failures)
    scores = _as(score, both)
    return scores if pairs is not None else scores.unflatten(0, (len(images), len(texts)))


def judge(model: MED, images: ImageStream, texts: PackedText, wanted: Tensor) -> Tensor:
    """ITM logits [P, 2] float32 on the host; NaN where an image cannot be read.

    Image by image: a memory is made once for all texts that want it, and dropped.

    Args:
        texts: beginning with `grounded_token`.
        wanted: [P, 2] int64, places of images and texts.
    """
    both = torch.full((len(wanted), 2), torch.nan)
    order = wanted[:, 0].argsort(stable=True)
    places, number = wanted[order, 0].unique_consecutive(return_counts=True)
    pairs_of = dict(zip(places.tolist(), order.split(number.tolist()), strict=True))
    for view in images.memories(places.tolist()):
        at = [pairs_of[place] for place in view.places]
        rows = view.index.repeat_interleave(torch.tensor([len(a) for a in at]))
        pairs = torch.cat(at)
        both[pairs] = _judge_view(model, view.memory, texts, rows, wanted[pairs, 1])
        del view  # or it would be held while the next is made
    return both


def _judge_view(
    model: MED, memory: ImageMemory, texts: PackedText, memory_rows: Tensor, text_rows: Tensor
) -> Tensor:
    def logits(text: PackedText, rows: Tensor) -> Tensor:
        return model.match_logits(text.to(model.device), memory, rows.to(model.device))

    with torch.inference_mode():
        return over_pairs(logits, texts, memory_rows, text_rows).cpu()


def _as(score: Score, logits: Tensor) -> Tensor:
    """ITM logits [P, 2] as the score that is wanted."""
    if score == "logits":
        return logits
    return logits[:, 1] if score == "logit" else logits.softmax(1)[:, 1]


def wanted_pairs(images: int, texts: int, pairs: Sequence[tuple[int, int]] | None) -> Tensor:
    """[P, 2] int64: the pairs named, or all of them, image by image.

    Raises:
        ValueError: where a pair names an image or text that is not there.
    """
    if pairs is None:
        return torch.cartesian_prod(torch.arange(images), torch.arange(texts)).view(-1, 2)
    wanted = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    for column, number, name in ((0, images, "image"), (1, texts, "text")):
        outside = (wanted[:, column] < 0) | (wanted[:, column] >= number)
        if outside.any():
            pair = tuple(wanted[outside][0].tolist())
            raise ValueError(f"pair {pair} names {name} {pair[column]}; there are {number}")
    return wanted


def grounded_token(model: MED) -> First:
    """What stands at position 0 of an image-grounded text: [ENC], or [CLS] as transformers."""
    return "[CLS]" if model.config.compat == "transformers" else "[ENC]"


def encode(tokenizer: Tokenizer, texts: Sequence[str], first: First, max_length: int) -> PackedText:
    """Tokenise; a warning counts the texts that had to be cut."""
    packed = tokenizer.encode(texts, first, max_length)
    if cut := int(packed.truncated.sum()):
        warnings.warn(f"{cut} of {len(packed)} texts were cut to {max_length} tokens", stacklevel=4)
    return packed


def warn_of_failures(failures: dict[int, Picture]) -> None:
    """Say which images have NaN for a result, and why."""
    if failures:
        listed = "; ".join(f"{f.name}: {f.status} ({f.error})" for f in failures.values())
        warnings.warn(f"{len(failures)} images could not be read: {listed}", stacklevel=4)
