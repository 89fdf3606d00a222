"""Per-token cross-entropy, against its formula in fp64."""

from __future__ import annotations

import pytest
import torch

from blip_fast import kernels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_the_formula(smoothing: float) -> None:
    hidden, weight, bias = torch.randn(9, 16), torch.randn(50, 16), torch.randn(50)
    targets = torch.randint(0, 50, (9,))
    targets[3] = -100
    log_probs = (hidden.double() @ weight.double().T + bias.double()).log_softmax(1)
    at_target = log_probs.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    expected = -(1 - smoothing) * at_target - smoothing * log_probs.mean(1)
    expected[3] = 0
    losses = kernels.linear_cross_entropy(hidden, weight, bias, targets, smoothing)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_flow_to_all_but_ignored_rows() -> None:
    hidden = torch.randn(3, 8, requires_grad=True)
    weight, bias = torch.randn(20, 8, requires_grad=True), torch.randn(20, requires_grad=True)
    losses = kernels.linear_cross_entropy(hidden, weight, bias, torch.tensor([4, -100, 0]))
    grads = torch.autograd.grad(losses.sum(), (hidden, weight, bias))
    assert grads[0][1].abs().sum() == 0
    assert all(g.abs().sum() > 0 for g in (grads[0][0], grads[0][2], grads[1], grads[2]))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[T, K\] with T targets"):
        kernels.linear_cross_entropy(
            torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5), torch.zeros(2).long()
        )
    with pytest.raises(ValueError, match="does not fit weight"):
        kernels.linear_cross_entropy(
            torch.zeros(3, 4), torch.zeros(5, 6), torch.zeros(5), torch.zeros(3).long()
        )
