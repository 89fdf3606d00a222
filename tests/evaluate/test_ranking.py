from __future__ import annotations

import pytest
import torch

from blip_fast.evaluate.ranking import recall
from blip_fast.tasks.retrieve import Ranking


def test_recall_at_every_depth() -> None:
    places = torch.tensor([[4, 0, 2], [1, 3, -1], [2, 0, 1], [0, 1, 2]])
    ranking = Ranking(places, torch.zeros(4, 3))
    truth = [{4, 9}, {3}, {7}, set()]  # right at 1, at 2, nowhere; one that does not count
    assert recall(ranking, truth, (1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 2 / 3})
    with pytest.raises(ValueError, match="3 truths for 4 queries"):
        recall(ranking, truth[:3])
    with pytest.raises(ValueError, match="no query has a right candidate"):
        recall(ranking, [set()] * 4)
