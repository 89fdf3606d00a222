"""How negatives are drawn."""

from __future__ import annotations

import torch

from blip_fast.train.itm import draw, negative_weights


def features(seed: int, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=generator), dim=1)


def test_weights_are_the_softmax_of_similarities_without_the_positives() -> None:
    texts, images, own = features(0, 5), features(1, 5), torch.eye(5).bool()
    weights = negative_weights(texts, images, torch.tensor(0.07), own)
    for i in range(5):
        similarity = torch.tensor([float(texts[i] @ images[j]) / 0.07 for j in range(5)])
        expected = similarity.exp() / similarity.exp().sum() + 1e-4
        expected[i] = 0
        assert torch.allclose(weights[i], expected, rtol=1e-4)


def test_draws_follow_the_weights_and_never_take_a_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(4, 4, generator=generator) * (1 - torch.eye(4))
    repeats = 4000
    drawn = draw(weights.repeat(repeats, 1), weights.T.repeat(repeats, 1))
    for found, expected in ((drawn.images, weights), (drawn.texts, weights.T)):
        counts = torch.nn.functional.one_hot(found, 4).view(repeats, 4, 4).float().mean(0)
        assert (counts.diagonal() == 0).all()
        share = expected / expected.sum(1, keepdim=True)
        # Four standard deviations of a share of 4,000 draws.
        assert ((counts - share).abs() <= 4 * (share * (1 - share) / repeats).sqrt() + 1e-9).all()


def test_an_item_without_any_negative_is_void_and_costs_the_others_nothing() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    drawn = draw(weights, torch.ones(3, 3))
    assert drawn.has_image.tolist() == [True, False, True]
    assert drawn.has_text.all()
    assert drawn.images[0] == 1 and drawn.images[2] == 0


def test_a_row_that_is_not_finite_is_void_and_stops_nothing() -> None:
    weights = torch.tensor([[0.0, torch.nan], [1.0, 0.0]])
    drawn = draw(weights, weights)
    assert drawn.has_image.tolist() == drawn.has_text.tolist() == [False, True]
