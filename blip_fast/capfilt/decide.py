"""Which texts are kept: pure functions of scores, so that a threshold can be moved afterwards.

A text is kept where the filter's softmax ITM probability is at least the threshold, whether it
came from the web or from the captioner (BLIP, section 3.3). Several filters vote, and the vote is
what is held against the threshold. Beyond the paper, a text with certain flags is never kept,
whatever its score: filters like captions that go round in circles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from blip_fast.capfilt.rows import Candidate, Scores
from blip_fast.images import Status

# mean of the filters; the least of them; the largest, so that any filter alone can keep a text;
# or a weighted sum, by weights that add up to 1.
Vote = Literal["mean", "min", "any", "sum"]
VOTES: tuple[Vote, ...] = ("mean", "min", "any", "sum")

# Flags of texts that may be left out; duplicates always are.
Flag = Literal["degenerate", "truncated"]
FLAGS: tuple[Flag, ...] = ("degenerate", "truncated")


def can_be_scored(candidate: Candidate) -> bool:
    return candidate.status is Status.SUCCESS and not candidate.duplicate


def prepare(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Mark what is not to be scored: texts without a visible character, and repeated ones."""
    seen: set[str] = set()
    marked = []
    for candidate in candidates:
        text = " ".join(candidate.text.split()).casefold()
        if candidate.status is not Status.SUCCESS:
            marked.append(candidate)
        elif not text:
            marked.append(replace(candidate, status=Status.EMPTY_TEXT))
        else:
            again = text in seen
            seen.add(text)
            if candidate.duplicate is not again:
                candidate = replace(candidate, duplicate=again)
            marked.append(candidate)
    return marked


def finite(scores: Scores) -> bool:
    return all(value is not None and math.isfinite(value) for value in vars(scores).values())


def vote(filters: Sequence[Scores], how: Vote = "mean", weights: Sequence[float] = ()) -> Scores:
    """What several filters say together: each score of all of them, joined.

    Values are rounded to 32 bits, as the table holds them, so that whoever decides again from the
    table decides the same.

    Args:
        weights: one a filter, for "sum".
    """
    if len(filters) == 1 and how != "sum":
        return Scores(*(float(np.float32(value)) for value in vars(filters[0]).values()))
    shares = weights if how == "sum" else [1 / len(filters)] * len(filters)

    def join(values: list[float]) -> float:
        if how in ("mean", "sum"):
            joined = sum(w * v for w, v in zip(shares, values, strict=True))
        else:
            joined = min(values) if how == "min" else max(values)
        return float(np.float32(joined))

    columns = zip(*(vars(scores).values() for scores in filters), strict=True)
    return Scores(*(join(list(column)) for column in columns))


def with_scores(
    candidate: Candidate,
    filters: Sequence[Scores],
    threshold: float,
    itc_threshold: float | None = None,
    how: Vote = "mean",
    weights: Sequence[float] = (),
    without: Sequence[Flag] = (),
) -> Candidate:
    """Record the scores of a text and decide.

    A score that is not a finite number makes the status `failed_score` and is recorded as none: a
    comparison with it would be false either way round.

    Args:
        without: flags of texts that are not kept, whatever their scores.
    """
    if not all(map(finite, filters)):
        return unscored(candidate)
    joined = vote(filters, how, weights)
    kept = _may_be_kept(candidate, without) and _reaches(joined, threshold, itc_threshold)
    return replace(candidate, filters=tuple(filters), kept=kept, **vars(joined))


def unscored(candidate: Candidate) -> Candidate:
    """A text as it is recorded where a score should be and is not."""
    if not can_be_scored(candidate):
        return candidate
    return replace(candidate, status=Status.FAILED_SCORE, kept=False)


def decide(
    candidate: Candidate,
    threshold: float,
    itc_threshold: float | None = None,
    without: Sequence[Flag] = (),
) -> Candidate:
    """Keep a text, or not, by the scores and flags recorded with it."""
    kept = _may_be_kept(candidate, without) and _reaches(candidate, threshold, itc_threshold)
    return replace(candidate, kept=kept)


def _may_be_kept(candidate: Candidate, without: Sequence[Flag]) -> bool:
    return can_be_scored(candidate) and not any(getattr(candidate, flag) for flag in without)


def _reaches(scores: Candidate | Scores, threshold: float, itc_threshold: float | None) -> bool:
    probability, similarity = scores.itm_probability, scores.itc_similarity
    if probability is None or not probability >= threshold:
        return False
    return itc_threshold is None or (similarity is not None and similarity >= itc_threshold)
