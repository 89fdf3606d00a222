from __future__ import annotations

import pytest
import torch

from blip_fast.evaluate.ranking import recall
from blip_fast.tasks.nearest import Ranking


def ranking(places: list[list[int]]) -> Ranking:
    table = torch.tensor(places)
    return Ranking(table, torch.zeros(table.shape))


def test_any_of_the_right_answers_counts_from_its_place_on() -> None:
    found = ranking([[3, 1, 2], [0, 4, 5], [7, 8, 9], [2, -1, -1]])
    right = [[2, 3], [5], [1], [0]]
    assert recall(found, right, ks=(1, 2, 3, 10)) == {1: 0.25, 2: 0.25, 3: 0.5, 10: 0.5}


def test_a_query_without_right_answers_is_missed() -> None:
    assert recall(ranking([[0], [1]]), [[], [1]], ks=(1,)) == {1: 0.5}


@pytest.mark.parametrize(("places", "right"), [([[0]], []), ([], [])])
def test_what_has_no_recall(places: list, right: list) -> None:
    with pytest.raises(ValueError, match="queries"):
        recall(ranking(places), right)
