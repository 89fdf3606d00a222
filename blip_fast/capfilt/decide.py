"""Which texts are kept: pure functions of scores, so that a threshold can be moved afterwards.

A text is kept where the filter's softmax ITM probability is at least the threshold, whether it
came from the web or from the captioner (BLIP, section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from blip_fast.capfilt.rows import Candidate
from blip_fast.images import Status


@dataclass(frozen=True)
class Scores:
    """What the filter says of a text and a picture: ITM probability and logit, ITC cosine."""

    probability: float
    logit: float
    similarity: float

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (self.probability, self.logit, self.similarity)))


def can_be_scored(candidate: Candidate) -> bool:
    return candidate.status is Status.SUCCESS


def mark_empty(candidate: Candidate) -> Candidate:
    """Give a text without a visible character the status `empty_text`."""
    if can_be_scored(candidate) and not candidate.text.strip():
        return replace(candidate, status=Status.EMPTY_TEXT)
    return candidate


def with_scores(candidate: Candidate, scores: Scores, threshold: float) -> Candidate:
    """Record the scores of a text and decide.

    A score that is not a finite number makes the status `failed_score` and is recorded as none: a
    comparison with it would be false either way round.
    """
    if not scores.finite:
        return replace(candidate, status=Status.FAILED_SCORE, kept=False)
    scored = replace(
        candidate,
        itm_probability=scores.probability,
        itm_logit=scores.logit,
        itc_similarity=scores.similarity,
    )
    return decide(scored, threshold)


def decide(candidate: Candidate, threshold: float) -> Candidate:
    """Keep a text, or not, by the probability recorded with it."""
    probability = candidate.itm_probability
    kept = can_be_scored(candidate) and probability is not None and probability >= threshold
    return replace(candidate, kept=kept)
