"""The queue, the momentum copy and the ramp of the soft targets."""

from __future__ import annotations

import pytest
import torch
from factories import random_med

from blip_fast.train.itc import EMPTY, FeatureQueue, MomentumContrast, momentum_copy


def entered(queue: FeatureQueue, sizes: list[int]) -> torch.Tensor:
    """Enter batches of these sizes, ids counting from 0; the ids in the queue."""
    first = 0
    for size in sizes:
        ids = torch.arange(first, first + size)
        features = ids[:, None].expand(size, 2).float()
        queue.push(features, -features, ids)
        first += size
    return queue.ids


@pytest.mark.parametrize("sizes", [[3], [4, 4], [3, 3, 3], [1] * 12, [7], [5, 12, 2]])
def test_a_queue_of_any_size_takes_batches_of_any_size(sizes: list[int]) -> None:
    queue = FeatureQueue(5, 2, seed=0)
    ids = entered(queue, sizes)
    total = sum(sizes)
    expected = set(range(max(0, total - 5), total)) | ({EMPTY} if total < 5 else set())
    assert set(ids.tolist()) == expected
    assert queue.ids.tolist().count(EMPTY) == max(0, 5 - total)
    filled = ids != EMPTY
    assert torch.equal(queue.images[filled, 0], ids[filled].float())
    assert torch.equal(queue.texts[filled, 0], -ids[filled].float())


def test_an_empty_queue_is_no_queue() -> None:
    assert entered(FeatureQueue(0, 2, seed=0), [3, 3]).numel() == 0


def test_a_queue_begins_with_normalised_noise_that_differs_by_seed() -> None:
    first, again, other = (FeatureQueue(50, 8, seed) for seed in (1, 1, 2))
    assert torch.allclose(first.images.norm(dim=1), torch.ones(50))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, first.texts)


def test_the_momentum_copy_gives_the_same_features_and_shares_nothing() -> None:
    model = random_med("pretrain")
    momentum = momentum_copy(model)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(
        momentum.image_feature(momentum.vision(images)), model.image_feature(model.vision(images))
    )
    online = {p.data_ptr() for p in model.parameters()}
    assert online.isdisjoint(p.data_ptr() for p in momentum.parameters())
    names = set(dict(momentum.named_parameters()))
    assert names < set(dict(model.named_parameters()))
    assert not any("cross_attention" in name for name in names)


def test_following_moves_every_copy_by_one_minus_momentum() -> None:
    model = random_med("retrieval")
    contrast = MomentumContrast(model, 4, momentum=0.75, alpha=0.4, alpha_epochs=2, seed=0)
    before = {n: p.clone() for n, p in contrast.model.named_parameters()}
    for parameter in model.parameters():
        parameter.add_(1.0)
    contrast.follow(model)
    for name, copy in contrast.model.named_parameters():
        assert torch.allclose(copy, before[name] + 0.25, atol=1e-6), name


@pytest.mark.parametrize(
    ("epochs", "alpha_epochs", "expected"), [(0, 2, 0), (0.5, 2, 0.1), (3, 2, 0.4), (0, 0, 0.4)]
)
def test_alpha_grows_evenly(epochs: float, alpha_epochs: float, expected: float) -> None:
    contrast = MomentumContrast(random_med("retrieval"), 4, 0.9, 0.4, alpha_epochs, seed=0)
    assert contrast.alpha_at(epochs) == pytest.approx(expected)
