from __future__ import annotations

import math

import pytest

from blip_fast.capfilt.decide import Scores, decide, mark_empty, with_scores
from blip_fast.capfilt.rows import Candidate
from blip_fast.images import Status


@pytest.mark.parametrize(("probability", "kept"), [(0.4999, False), (0.5, True), (1.0, True)])
def test_kept_from_the_threshold_on(probability: float, kept: bool) -> None:
    for source in ("web", "synthetic"):
        candidate = with_scores(Candidate(source, "a cat"), Scores(probability, 0.0, 0.1), 0.5)
        assert candidate.kept is kept
        assert candidate.status is Status.SUCCESS
        assert candidate.itm_probability == probability


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_score_that_is_no_number_is_never_kept(broken: float, threshold: float) -> None:
    for scores in (Scores(broken, 0, 0), Scores(0.9, broken, 0), Scores(0.9, 0, broken)):
        candidate = with_scores(Candidate("web", "a cat"), scores, threshold)
        assert candidate.status is Status.FAILED_SCORE
        assert not candidate.kept
        assert candidate.itm_probability is None


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_empty_texts_are_marked_and_not_kept(text: str) -> None:
    candidate = mark_empty(Candidate("web", text))
    assert candidate.status is Status.EMPTY_TEXT
    assert not decide(candidate, 0.0).kept


def test_marking_leaves_other_candidates_alone() -> None:
    candidate = Candidate("web", "a cat")
    assert mark_empty(candidate) is candidate
    failed = Candidate("web", "", status=Status.FAILED_TO_READ)
    assert mark_empty(failed) is failed


def test_a_threshold_can_be_moved_afterwards() -> None:
    kept = with_scores(Candidate("web", "a cat"), Scores(0.6, 0.4, 0.1), 0.5)
    assert kept.kept and not decide(kept, 0.7).kept and decide(decide(kept, 0.7), 0.6).kept
