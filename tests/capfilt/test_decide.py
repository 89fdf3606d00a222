from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blip_fast.capfilt.decide import decide, prepare, vote, with_scores
from blip_fast.capfilt.rows import Candidate, Scores
from blip_fast.images import Status


@pytest.mark.parametrize(("probability", "kept"), [(0.4999, False), (0.5, True), (1.0, True)])
def test_kept_from_the_threshold_on(probability: float, kept: bool) -> None:
    for source in ("web", "synthetic"):
        candidate = with_scores(Candidate(source, "a cat"), [Scores(probability, 0.0, 0.1)], 0.5)
        assert candidate.kept is kept
        assert candidate.status is Status.SUCCESS
        assert candidate.itm_probability == np.float32(probability)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_score_that_is_no_number_is_never_kept(broken: float, threshold: float) -> None:
    for scores in (Scores(broken, 0, 0), Scores(0.9, broken, 0), Scores(0.9, 0, broken)):
        candidate = with_scores(Candidate("web", "a cat"), [Scores(0.9, 0, 0), scores], threshold)
        assert candidate.status is Status.FAILED_SCORE
        assert not candidate.kept
        assert candidate.itm_probability is None


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_empty_texts_are_marked_and_not_kept(text: str) -> None:
    (candidate,) = prepare([Candidate("web", text)])
    assert candidate.status is Status.EMPTY_TEXT
    assert not decide(candidate, 0.0).kept


def test_marking_leaves_other_candidates_alone() -> None:
    failed = Candidate("web", "", status=Status.FAILED_TO_READ)
    candidates = [Candidate("web", "a cat"), failed]
    assert prepare(candidates) == candidates


def test_repeated_texts_are_marked_and_never_kept() -> None:
    texts = ("A cat", "a dog", " a  CAT", "", "")
    marked = prepare([Candidate("web", text) for text in texts])
    assert [c.duplicate for c in marked] == [False, False, True, False, False]
    scored = with_scores(marked[0], [Scores(1.0, 5.0, 0.5)], 0.5)
    assert scored.kept and not decide(replace(scored, duplicate=True), 0.0).kept


@pytest.mark.parametrize(
    ("how", "weights", "probability"),
    [("mean", (), 0.5), ("min", (), 0.25), ("any", (), 0.75), ("sum", (0.75, 0.25), 0.375)],
)
def test_votes(how: Any, weights: tuple[float, ...], probability: float) -> None:
    filters = [Scores(0.25, -1.0, 0.0), Scores(0.75, 1.0, 0.5)]
    assert vote(filters, how, weights).itm_probability == probability
    candidate = with_scores(Candidate("web", "a"), filters, 0.375, None, how, weights)
    assert candidate.filters == tuple(filters) and candidate.kept is (probability >= 0.375)


def test_who_decides_again_from_the_table_decides_the_same() -> None:
    thirds = [Scores(p, 0.0, 0.0) for p in (0.5, 0.5, 0.49999999)]
    candidate = with_scores(Candidate("web", "a"), thirds, 0.5)
    assert candidate.itm_probability == np.float32(candidate.itm_probability)
    assert decide(candidate, 0.5).kept is candidate.kept


def test_itc_may_have_a_say() -> None:
    scores = [Scores(0.9, 2.0, 0.25)]
    assert with_scores(Candidate("web", "a"), scores, 0.5, 0.25).kept
    assert not with_scores(Candidate("web", "a"), scores, 0.5, 0.26).kept


def test_a_threshold_can_be_moved_afterwards() -> None:
    kept = with_scores(Candidate("web", "a cat"), [Scores(0.6, 0.4, 0.1)], 0.5)
    assert kept.kept and not decide(kept, 0.7).kept and decide(decide(kept, 0.7), 0.6).kept


def test_texts_with_a_flag_are_left_out_and_keep_their_scores() -> None:
    sure = [Scores(0.99, 4.6, 0.4)]
    round_and_round = Candidate("synthetic", "red red red", degenerate=True)
    cut = Candidate("web", "a long text", truncated=True)
    assert with_scores(round_and_round, sure, 0.5).kept  # by scores alone, as in the paper
    found = with_scores(round_and_round, sure, 0.5, without=("degenerate",))
    assert not found.kept and found.degenerate
    assert found.itm_probability == pytest.approx(0.99) and found.status is Status.SUCCESS
    assert with_scores(cut, sure, 0.5, without=("degenerate",)).kept
    assert not with_scores(cut, sure, 0.5, without=("degenerate", "truncated")).kept
    assert not decide(found, 0.5, without=("degenerate",)).kept and decide(found, 0.5).kept
