"""Matching: how well do texts and images belong together? ITM reads both, ITC compares features.

ITM is the judgement of the image-grounded encoder, a probability; ITC the cosine of two features,
cheap and comparable across a collection (BLIP, section 3.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from blip_fast.decoding.pairs import over_pairs
from blip_fast.images import ImageOptions, Picture
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference
from blip_fast.tasks.views import ImageList, View, views
from blip_fast.text import First, PackedText, Tokenizer

Score = Literal["probability", "logit", "logits"]

# (image, text) indices: tuples, or the rows of an array or a tensor.
Pairs: TypeAlias = Iterable[tuple[int, int]] | np.ndarray | Tensor


def match(
    model: MED,
    tokenizer: Tokenizer,
    images: ImageList,
    texts: Sequence[str],
    pairs: Pairs | None,
    score: Score,
    max_length: int,
    image_options: ImageOptions,
    batch_size: int,
) -> Tensor:
    """ITM of all pairs [N, T], or of the named ones [P]; NaN where an image cannot be read.

    Images that no pair names are not looked at.
    """
    if score not in get_args(Score):
        raise ValueError(f"score is {score!r}; it must be one of {', '.join(get_args(Score))}")
    number = len(images)
    wanted = wanted_pairs(number, len(texts), pairs)
    packed = encode(tokenizer, texts, grounded_token(model), max_length)
    both = torch.full((len(wanted), 2), torch.nan, dtype=torch.float32)
    failures: dict[int, Picture] = {}
    named = sorted(set(wanted[:, 0].tolist()))
    sequences = packed.tolist()
    for view in views(model, images, image_options, batch_size, failures, named):
        at, logits = match_view(model, view, sequences, wanted)
        both[at] = logits
        del view  # or its memory would be held while the next is made
    warn_of_failures(failures)
    scores = _as(score, both)
    return scores if pairs is not None else scores.unflatten(0, (number, len(texts)))


def match_view(
    model: MED, view: View, sequences: Sequence[Sequence[int]], wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Judge the pairs whose image is in a view.

    Args:
        sequences: token ids of every text.
        wanted: [P, 2] int64, pairs of image and text.

    Returns:
        the places of those pairs [p], and their ITM logits [p, 2], on the host.
    """
    at, memory_rows = _pairs_in(view, wanted)

    def logits(text: PackedText, rows: Tensor) -> Tensor:
        return model.match_logits(text.to(model.device), view.memory, rows.to(model.device))

    if not len(at):
        return at, torch.empty(0, 2, dtype=torch.float32)
    with inference(model.device):
        return at, over_pairs(model, logits, sequences, memory_rows, wanted[at, 1]).cpu()


def _as(score: Score, logits: Tensor) -> Tensor:
    """ITM logits [P, 2] as the score that is wanted."""
    if score == "logits":
        return logits
    return logits[:, 1] if score == "logit" else logits.softmax(1)[:, 1]


def wanted_pairs(images: int, texts: int, pairs: Pairs | None) -> Tensor:
    """[P, 2] int64: the pairs named, or all of them, image by image.

    Raises:
        ValueError: where a pair names an image or text that is not there, or is no pair.
    """
    if pairs is None:
        return torch.cartesian_prod(torch.arange(images), torch.arange(texts)).view(-1, 2)
    rows = pairs if isinstance(pairs, (np.ndarray, Tensor)) else list(pairs)
    if not len(rows):
        return torch.empty(0, 2, dtype=torch.int64)
    wanted = torch.as_tensor(rows, dtype=torch.int64, device="cpu")
    if wanted.ndim != 2 or wanted.shape[1] != 2:
        raise ValueError(f"pairs are {list(wanted.shape)}; each is an image and a text, [P, 2]")
    for column, number, name in ((0, images, "image"), (1, texts, "text")):
        outside = (wanted[:, column] < 0) | (wanted[:, column] >= number)
        if outside.any():
            pair = tuple(wanted[outside][0].tolist())
            raise ValueError(f"pair {pair} names {name} {pair[column]}; there are {number}")
    return wanted


def _pairs_in(view: View, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The places of the pairs whose image is in a view, and the memory row of each."""
    row_of = torch.full((max(view.places) + 1,), -1)
    row_of[view.places] = view.index.cpu()
    image = wanted[:, 0].clamp(max=max(view.places))
    inside = (wanted[:, 0] == image) & (row_of[image] >= 0)
    at = inside.nonzero()[:, 0]
    return at, row_of[wanted[at, 0]]


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
