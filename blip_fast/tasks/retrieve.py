"""Retrieval in two stages: ITC finds candidates, ITM ranks them again (BLIP, section 5.1).

Image-major: the pairs that either direction wants are joined, and each image's memory is made once
for all of its texts, used, and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from blip_fast.images import ImageOptions, Picture
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.embed import embed_texts, empty_features, features_of, similarity
from blip_fast.tasks.match import encode, grounded_token, match_view, warn_of_failures
from blip_fast.tasks.views import ImageList, View, in_batches, views
from blip_fast.text import Tokenizer

# "itm+itc" is the published one: the logit of a match plus the cosine.
RankBy = Literal["itm+itc", "itm", "itc"]

_IMAGES_PER_PART = 1024  # of the similarities held at once


@dataclass(frozen=True)
class Ranking:
    """The candidates of each query, best first.

    Attributes:
        places: [Q, K] int64 on the host; -1 where a query has fewer than K candidates, because
            images could not be read.
        scores: [Q, K] float32; minus infinity there.
    """

    places: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Retrieval:
    """Both directions.

    Attributes:
        images: of each text, the images.
        texts: of each image, the texts.
    """

    images: Ranking
    texts: Ranking


def retrieve(
    model: MED,
    tokenizer: Tokenizer,
    images: ImageList,
    texts: Sequence[str],
    k: int,
    rank_by: RankBy,
    max_length: int,
    image_options: ImageOptions,
    batch_size: int,
    budget: int,
) -> Retrieval:
    """Rank images for each text and texts for each image; see `Blip.retrieve`."""
    if k < 1 or rank_by not in get_args(RankBy):
        raise ValueError(
            f"k is {k}, rank_by is {rank_by!r}; k must be at least 1, rank_by one of "
            f"{', '.join(get_args(RankBy))}"
        )
    if not len(images) or not len(texts):
        raise ValueError(f"there is nothing to rank: {len(images)} images and {len(texts)} texts")
    failures: dict[int, Picture] = {}
    looked = _FirstLook(model, images, image_options, batch_size, budget // 2, failures)
    warn_of_failures(failures)
    written = embed_texts(model, tokenizer, texts, max_length)
    found = candidates(looked.features, written, k)
    if rank_by == "itc":
        return found
    pairs = _joined(found)
    sequences = encode(tokenizer, texts, grounded_token(model), max_length).tolist()
    logits = torch.full((len(pairs),), -torch.inf, dtype=torch.float32)
    wanted = sorted(set(pairs[:, 0].tolist()))
    together = max(1, budget // 2 // model.memory_bytes(image_options.size))
    for view in looked.again(wanted, together):
        at, both = match_view(model, view, sequences, pairs)
        logits[at] = both[:, 1]
        del view  # or its memory would be held while the next is made
    if rank_by == "itm+itc":
        logits += (looked.features[pairs[:, 0]] * written[pairs[:, 1]]).sum(1)
    codes = pairs[:, 0] * len(texts) + pairs[:, 1]  # ascending, as `torch.unique` leaves them
    return Retrieval(
        images=_ranked_again(found.images, codes, logits, lambda q, c: c * len(texts) + q),
        texts=_ranked_again(found.texts, codes, logits, lambda q, c: q * len(texts) + c),
    )


def candidates(image_features: Tensor, text_features: Tensor, k: int) -> Retrieval:
    """The k nearest of each by cosine, both ways; similarities are never held as a whole.

    Args:
        image_features: [N, E], normalised; rows of NaN are nobody's candidates and have none.
        text_features: [T, E], normalised.
    """
    readable = image_features.isfinite().all(1)
    queries, number = len(text_features), len(image_features)
    best = torch.full((queries, 0), -torch.inf, dtype=torch.float32)
    where = torch.empty(queries, 0, dtype=torch.int64)
    of_images: list[tuple[Tensor, Tensor]] = []
    for start in range(0, number, _IMAGES_PER_PART):
        part = slice(start, start + _IMAGES_PER_PART)
        cosines = similarity(image_features[part], text_features)
        cosines[~readable[part]] = -torch.inf
        of_images.append(_nearest(cosines, k))
        places = torch.arange(start, start + len(cosines)).expand(queries, -1)
        best, order = _nearest(torch.cat([best, cosines.T], 1), k)
        where = torch.cat([where, places], 1).gather(1, order)
    scores, texts = (torch.cat(some) for some in zip(*of_images, strict=True))
    return Retrieval(Ranking(_named(where, best), best), Ranking(_named(texts, scores), scores))


class _FirstLook:
    """The ITC features of all images, and of as many as a budget allows the image tokens.

    From tokens a memory is made by one projection, without another look at the image; they take a
    twenty-fourth of its bytes in a base model.
    """

    def __init__(
        self,
        model: MED,
        images: ImageList,
        options: ImageOptions,
        batch_size: int,
        budget: int,
        failures: dict[int, Picture],
    ) -> None:
        self._model, self._images, self._options = model, images, options
        self._kept: dict[int, Tensor] = {}
        self.features = empty_features(len(images), model)
        if isinstance(images, ImageMemory):
            self.features = features_of(images)
            return

        def look(part: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
            with inference(model.device):
                tokens = model.vision(torch.stack([p for _, p in part]).to(model.device))
                return tokens, model.image_feature(tokens).cpu()

        for seen, (tokens, found) in in_batches(model, look, images, options, batch_size, failures):
            self.features[seen] = found
            if tokens.nbytes <= budget:
                budget -= tokens.nbytes
                self._kept |= zip(seen, tokens, strict=True)

    def again(self, places: Sequence[int], batch_size: int) -> Iterator[View]:
        """The memories of some images, `batch_size` of them at a time."""
        kept = [place for place in places if place in self._kept]
        for start in range(0, len(kept), batch_size):
            some = kept[start : start + batch_size]
            with inference(self._model.device):
                tokens = torch.stack([self._kept.pop(place) for place in some])
                memory = self._model.memory_of(tokens)
            yield View(some, memory, torch.arange(len(some), device=self._model.device))
            del tokens, memory
        held = set(kept)
        rest = [place for place in places if place not in held]
        # What could be read once is named where it now cannot: its score stays minus infinity.
        failures: dict[int, Picture] = {}
        yield from views(self._model, self._images, self._options, batch_size, failures, rest)
        warn_of_failures(failures)


def _nearest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending, and their places; the first of equals wins."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


def _named(places: Tensor, scores: Tensor) -> Tensor:
    return places.masked_fill(scores == -torch.inf, -1)


def _joined(found: Retrieval) -> Tensor:
    """[P, 2] (image, text), image by image: all pairs that either direction wants, once each."""
    sides = []
    for ranking, text_first in ((found.images, True), (found.texts, False)):
        own = torch.arange(len(ranking.places))[:, None].expand_as(ranking.places)
        both = (ranking.places, own) if text_first else (own, ranking.places)
        sides.append(torch.stack(both, -1)[ranking.places >= 0])
    return torch.unique(torch.cat(sides), dim=0)


def _ranked_again(
    ranking: Ranking, codes: Tensor, logits: Tensor, code_of: Callable[[Tensor, Tensor], Tensor]
) -> Ranking:
    """Order candidates by new scores.

    Args:
        codes, logits: [P], of all pairs, ascending by code.
        code_of: query and candidate to the code of their pair.
    """
    own = torch.arange(len(ranking.places))[:, None]
    at = torch.searchsorted(codes, code_of(own, ranking.places)).clamp(max=max(0, len(codes) - 1))
    scores = torch.full_like(ranking.scores, -torch.inf)
    there = ranking.places >= 0
    scores[there] = logits[at[there]]
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return Ranking(_named(ranking.places.gather(1, order), values), values)
