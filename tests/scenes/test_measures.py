from __future__ import annotations

import random

import pytest
import torch

from blip_fast.scenes.measures import accuracy, auc, majority, recall_at_1


def test_auc_counts_pairs_and_halves_ties() -> None:
    rng = random.Random(0)
    for size in (1, 3, 40):
        positives = torch.tensor([float(rng.randint(0, 5)) for _ in range(size)])
        negatives = torch.tensor([float(rng.randint(0, 5)) for _ in range(2 * size)])
        above = (positives[:, None] > negatives).double() + (positives[:, None] == negatives) / 2
        assert auc(positives, negatives) == pytest.approx(above.mean().item(), abs=1e-12)
    assert auc(torch.ones(9), torch.ones(4)) == 0.5
    assert auc(torch.tensor([2.0, 3.0]), torch.tensor([1.0])) == 1.0


def test_auc_needs_both_kinds_and_numbers() -> None:
    with pytest.raises(ValueError, match="0 positives and 2 negatives"):
        auc(torch.empty(0), torch.ones(2))
    with pytest.raises(ValueError, match="1 of 3 scores are not a number"):
        auc(torch.tensor([1.0, torch.nan]), torch.ones(1))


def test_recall_takes_any_right_column() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.5, 0.5, 0.1], [0.0, 0.1, 0.2]])
    right = torch.tensor([[False, True, True], [False, True, False], [False, False, True]])
    assert recall_at_1(scores, right) == pytest.approx(2 / 3)  # of equals the first counts


def test_answers_are_compared_letter_by_letter() -> None:
    assert accuracy(["red", "top", "2"], ["red", "top left", "2"]) == pytest.approx(2 / 3)
    assert majority(["no", "yes", "no", "no"]) == 0.75
