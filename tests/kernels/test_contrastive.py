"""ITC with soft targets, against the loss written row by row."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from blip_fast import kernels


def features(rows: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 12, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_against_rows(alpha: float) -> None:
    query, momentum, bank = features(4), features(4), features(11)
    ids = torch.tensor([7, 8, 9, 7])
    bank_ids = torch.tensor([7, 8, 9, 7, -100, 8, 3, -100, 5, 5, 5])
    temperature = torch.tensor(0.07, dtype=torch.float64)
    expected = []
    for row in range(4):
        soft = (bank @ momentum[row] / temperature).softmax(0)
        same = (bank_ids == ids[row]).double()
        target = alpha * soft + (1 - alpha) * same / same.sum()
        expected.append(-(target * (bank @ query[row] / temperature).log_softmax(0)).sum())
    actual = kernels.contrastive(query, momentum, bank, temperature, ids, bank_ids, alpha)
    torch.testing.assert_close(actual.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_gradient_flows_to_features_and_temperature_alone() -> None:
    leaves = [features(3), features(3), features(6), torch.tensor(0.07, dtype=torch.float64)]
    query, momentum, bank, temperature = (t.float().requires_grad_() for t in leaves)
    ids = torch.arange(3)
    bank_ids = torch.cat([ids, torch.full((3,), -100)])
    kernels.contrastive(query, momentum, bank, temperature, ids, bank_ids, 0.4).sum().backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    assert temperature.grad is not None and temperature.grad.abs() > 0
    assert momentum.grad is None and bank.grad is None


def test_shapes_are_checked() -> None:
    query, bank, one = torch.zeros(3, 4), torch.zeros(6, 4), torch.tensor(0.07)
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.contrastive(query, query, torch.zeros(6, 5), one, ids, torch.arange(6), 0.4)
    with pytest.raises(ValueError, match="need as many ids; there are 3 and 5"):
        kernels.contrastive(query, query, bank, one, ids, torch.arange(5), 0.4)
