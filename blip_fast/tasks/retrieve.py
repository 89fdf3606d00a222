"""Retrieval in two stages: ITC chooses candidates, ITM ranks them (BLIP, section 5.1).

As the authors' evaluation has it, a candidate's score is the ITM head's logit of a match, before
the softmax, plus the ITC cosine, without the temperature. Both directions share their work: a pair
that both ask for is judged once, and an image's memory is made once for all texts that want it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from blip_fast.med.blip import MED
from blip_fast.tasks.embed import embed_packed
from blip_fast.tasks.match import encode, grounded_token, judge, warn_of_failures
from blip_fast.tasks.nearest import Ranking, nearest
from blip_fast.tasks.stream import ImageStream
from blip_fast.text import PackedText, Tokenizer

RankBy = Literal["itm+itc", "itm", "itc"]


@dataclass(frozen=True)
class Retrieved:
    """What belongs together.

    Attributes:
        texts: for each image, the places of texts. An image that cannot be read has none.
        images: for each text, the places of images.
    """

    texts: Ranking
    images: Ranking


def retrieve(
    model: MED,
    tokenizer: Tokenizer,
    images: ImageStream,
    texts: Sequence[str],
    texts_per_image: int,
    images_per_text: int,
    rank_by: RankBy,
    max_length: int,
    text_batch: int,
) -> Retrieved:
    """See `Blip.retrieve`.

    Raises:
        ValueError: where a number is negative, or `rank_by` is none of its words.
    """
    if min(texts_per_image, images_per_text) < 0:
        raise ValueError(
            f"texts_per_image is {texts_per_image} and images_per_text {images_per_text}; they "
            "must be at least 0"
        )
    if rank_by not in get_args(RankBy):
        raise ValueError(f"rank_by is {rank_by!r}; it must be one of {', '.join(get_args(RankBy))}")
    packed = encode(tokenizer, texts, "[CLS]", max_length)
    text_features = embed_packed(model, packed, text_batch)
    image_features = images.features()
    found = Retrieved(
        nearest(image_features, text_features, texts_per_image),
        nearest(text_features, image_features, images_per_text),
    )
    if rank_by != "itc":
        grounded = packed.starting_with(tokenizer.id_of(grounded_token(model)))
        found = rerank(model, images, grounded, found, with_itc=rank_by == "itm+itc")
    warn_of_failures(images.failures)
    return found


def rerank(
    model: MED, images: ImageStream, texts: PackedText, found: Retrieved, with_itc: bool
) -> Retrieved:
    """Rank candidates anew, by ITM.

    Args:
        texts: beginning with `grounded_token`.
        found: candidates with their ITC cosines.
        with_itc: add those to the logits.
    """
    by_image = _keys(found.texts.places, images_first=True, texts=len(texts))
    by_text = _keys(found.images.places, images_first=False, texts=len(texts))
    keys = torch.cat([by_image.flatten(), by_text.flatten()]).unique()
    keys = keys[keys >= 0]
    pairs = torch.stack([keys // max(1, len(texts)), keys % max(1, len(texts))], dim=1)
    logits = judge(model, images, texts, pairs)[:, 1]
    return Retrieved(
        _ranked(found.texts, by_image, keys, logits, with_itc),
        _ranked(found.images, by_text, keys, logits, with_itc),
    )


def _keys(places: Tensor, images_first: bool, texts: int) -> Tensor:
    """[Q, K] int64: each pair as one number, image * texts + text; -1 where there is none."""
    query = torch.arange(len(places))[:, None]
    keys = query * texts + places if images_first else places * texts + query
    return keys.where(places >= 0, -1)


def _ranked(
    found: Ranking, wanted: Tensor, keys: Tensor, logits: Tensor, with_itc: bool
) -> Ranking:
    """Candidates in the order of their new scores.

    Args:
        wanted: [Q, K], the key of each candidate.
        keys: [P] ascending, those that were judged.
        logits: [P], their ITM logits.
    """
    if not len(keys):
        return found
    judged = logits[torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)]
    scores = judged + found.scores if with_itc else judged
    scores = scores.where(wanted >= 0, torch.nan)
    order = scores.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)
    places = found.places.where(~scores.isnan(), -1)
    return Ranking(places.gather(1, order), scores.gather(1, order))
