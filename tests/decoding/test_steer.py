"""Forbidden phrases, against the processor of transformers."""

from __future__ import annotations

import pytest
import torch

from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.steer import Steering

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY, END = 40, 39
PHRASES = ((3,), (1, 2), (0, 1, 2), (2, 2), (1, 0), (0, 1, 0, 1, 3), (7, 8, 9, 10, 11, 12), (5,))


@pytest.mark.parametrize("phrases", [PHRASES, PHRASES[:1], PHRASES[1:3], ((4,), (5,))])
def test_scores_are_those_of_transformers(phrases: tuple[tuple[int, ...], ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (64, 9), generator=generator)
    lengths = torch.randint(1, 10, (64,), generator=generator)
    scores = torch.randn(64, VOCABULARY, generator=generator)
    options = SearchOptions(min_length=0, forbidden=phrases)
    ours = Steering(options, END, torch.device("cpu"))(scores, tokens, lengths)
    theirs = transformers.generation.NoBadWordsLogitsProcessor([list(p) for p in phrases], END)
    for row, length in enumerate(lengths.tolist()):
        context = tokens[row : row + 1, :length]
        assert torch.equal(ours[row], theirs(context, scores[row : row + 1])[0]), (row, context)
    assert ours.isinf().any()


def test_without_settings_scores_stay_as_they_are() -> None:
    steer = Steering(SearchOptions(min_length=0), END, torch.device("cpu"))
    scores = torch.randn(2, VOCABULARY)
    assert steer(scores, torch.zeros(2, 3, dtype=torch.int64), torch.ones(2).long()) is scores
