"""ITC with soft targets, a part of the bank at a time.

Similarities exist for one part of the bank at once, those of the features and of the momentum
features from one product. What both passes share is six numbers a row, the `statistics`:

    0, 1  the largest similarity of the features and of the momentum features, divided by the
          temperature, as all here
    2, 3  the logarithm of the sum of powers of the similarities, each less the largest
    4     how many entries of the bank are positives
    5     the expected similarity of the features under the soft targets, less the largest

The first two pairs add to the logsumexps; apart, large similarities do not cost them their digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BANK = 2048  # entries of 256 features: 2 MB in fp32, read from memory once for all products


def contrastive(
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """[B, E] against [Q, E] -> losses [B] and statistics [6, B], float32."""
    both = _scaled(features, momentum, temperature)
    rows = len(ids)
    # Of features and momentum features: the largest similarity so far and the sum of powers.
    # Finite at the start, so that its difference to any similarity is a number.
    most = both.new_full((2 * rows,), torch.finfo(torch.float32).min)
    total, soft, positive, count = (both.new_zeros(n * rows) for n in (2, 1, 1, 1))
    for entries, entry_ids in _parts(bank, bank_ids):
        similarity = both @ entries.T
        student, teacher = similarity.tensor_split(2)
        positives = (ids[:, None] == entry_ids).float()
        count += positives.sum(1)
        positive += (positives * student).sum(1)
        before, most = most, torch.maximum(most, similarity.amax(1))
        shrink = (before - most).exp()
        weights = (teacher - most[rows:, None]).exp()
        soft = soft * shrink[rows:] + (weights * student).sum(1)
        powers = (student - most[:rows, None]).exp().sum(1)
        total = total * shrink + torch.cat([powers, weights.sum(1)])
    logsumexp = most + total.log()
    expected = alpha * soft / total[rows:] + (1 - alpha) * positive / count
    statistics = torch.cat([most, total.log(), count, expected - most[:rows]]).view(6, rows)
    return logsumexp[:rows] - expected, statistics


def contrastive_backward(
    grad: Tensor,
    features: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    statistics: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of features and temperature from that of the losses [B].

    A similarity's is grad * (softmax - y), y the soft targets.
    """
    both = _scaled(features, momentum, temperature)
    rows = len(ids)
    logsumexp, count = (statistics[:2] + statistics[2:4]).view(-1, 1), statistics[4, :, None]
    towards = torch.zeros_like(both[:rows])  # sum of (softmax - y) * entry
    for entries, entry_ids in _parts(bank, bank_ids):
        student, teacher = (both @ entries.T).sub_(logsumexp).exp_().tensor_split(2)
        positives = (ids[:, None] == entry_ids).float()
        student -= alpha * teacher + (1 - alpha) / count * positives
        towards += student @ entries
    towards *= grad.float()[:, None] / temperature.float()
    grad_temperature = -(towards.double() * features.double()).sum() / temperature.double()
    grad_temperature = grad_temperature.to(temperature.dtype).view_as(temperature)
    return towards.to(features.dtype), grad_temperature


def _scaled(features: Tensor, momentum: Tensor, temperature: Tensor) -> Tensor:
    """Both, divided by the temperature: [2B, E] float32."""
    return torch.cat([features, momentum]).float() / temperature.float()


def _parts(bank: Tensor, bank_ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for begin in range(0, len(bank), BANK):
        yield bank[begin : begin + BANK].float(), bank_ids[begin : begin + BANK]
