"""Per-token cross-entropy and its gradients, against the formula in higher precision."""

from __future__ import annotations

import pytest
import torch
from forcing import Recorder
from gate import Largest
from tolerance import assert_close_as_torch, wide
from torch import Tensor

from blip_fast import kernels
from blip_fast.kernels.linear_cross_entropy import IGNORE, chunked, reference

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["reference", "chunked"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Each one, the chunked with blocks so small that all sizes here have several and a rest."""
    monkeypatch.setattr(chunked, "TOKENS", 4)
    monkeypatch.setattr(chunked, "VOCABULARY", 16)
    with kernels.use(request.param, "linear_cross_entropy"):
        yield request.param


def inputs(tokens: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden, weight = torch.randn(tokens, 16).to(dtype), torch.randn(vocabulary, 16).to(dtype)
    bias, targets = torch.randn(vocabulary).to(dtype), torch.randint(0, vocabulary, (tokens,))
    targets[1::4] = IGNORE
    return hidden, weight, bias, targets


def formula(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float
) -> Tensor:
    log_probs = (hidden @ weight.T + bias).log_softmax(1)
    at_target = log_probs.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    losses = -at_target
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_probs.mean(1)
    return losses.masked_fill(targets == IGNORE, 0)


def test_gradients_of_no_tokens_are_zero(implementation: str) -> None:
    hidden, weight, bias, targets = inputs(0, 20, torch.float32)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    grads = torch.autograd.grad(kernels.linear_cross_entropy(*leaves, targets).sum(), leaves)
    assert grads[0].shape == (0, 16)
    assert not grads[1].any() and not grads[2].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(9, 50), (1, 1), (4, 33), (8, 16), (13, 33)])
def test_losses_and_every_gradient(
    implementation: str, tokens: int, vocabulary: int, smoothing: float, dtype: torch.dtype
) -> None:
    *leaves, targets = inputs(tokens, vocabulary, dtype)
    grad = torch.randn(tokens)

    def run(function, high: torch.dtype) -> list[Tensor]:
        tensors = [t.to(high).requires_grad_() for t in leaves]
        losses = function(*tensors, targets, smoothing)
        return [losses.detach(), *torch.autograd.grad(losses, tensors, grad.to(losses.dtype))]

    actual = run(kernels.linear_cross_entropy, dtype)
    same = run(reference.linear_cross_entropy, dtype)
    truth = run(formula, wide(dtype))
    assert actual[0].dtype == torch.float32
    for name, *triple in zip(
        ("loss", "hidden", "weight", "bias"), actual, same, truth, strict=True
    ):
        assert_close_as_torch(f"{implementation} {name}", *triple)
    assert (actual[0][targets == IGNORE] == 0).all()
    assert (actual[1][targets == IGNORE] == 0).all()


def test_without_gradients_the_losses_are_the_same(implementation: str) -> None:
    arguments = inputs(9, 50, torch.float32)
    with_gradients = kernels.linear_cross_entropy(arguments[0].requires_grad_(), *arguments[1:])
    with torch.no_grad():
        without = kernels.linear_cross_entropy(*arguments)
    assert torch.equal(with_gradients, without)
    assert with_gradients.requires_grad and not without.requires_grad


def test_no_tokens_and_other_layouts(implementation: str) -> None:
    hidden, weight, bias, targets = inputs(9, 50, torch.float32)
    nothing = kernels.linear_cross_entropy(hidden[:0], weight, bias, targets[:0], 0.1)
    assert nothing.shape == (0,)
    strided = (hidden.t().contiguous().t(), weight.t().contiguous().t(), bias.repeat(2)[:50])
    expected = kernels.linear_cross_entropy(hidden, weight, bias, targets, 0.1)
    actual = kernels.linear_cross_entropy(*strided, targets, 0.1)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_extreme_logits(implementation: str, scale: float) -> None:
    hidden, weight, bias, targets = inputs(9, 50, torch.float32)
    bias = bias * 0 - 1e4
    bias[:17] = -torch.inf  # words that no model gives, a block of them and one
    targets[(targets >= 0) & (targets < 17)] = 17
    losses = kernels.linear_cross_entropy(hidden * scale, weight, bias, targets)
    truth = formula((hidden * scale).double(), weight.double(), bias.double(), targets, 0.0)
    same = reference.linear_cross_entropy(hidden * scale, weight, bias, targets, 0.0)
    assert_close_as_torch(f"{implementation} {scale}", losses, same, truth)


def test_targets_that_are_no_tokens_are_refused(implementation: str) -> None:
    hidden, weight, bias, targets = inputs(9, 50, torch.float32)
    for wrong in (50, -1):
        targets[0] = wrong
        with pytest.raises((IndexError, RuntimeError)):
            kernels.linear_cross_entropy(hidden, weight, bias, targets)


def test_never_more_logits_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "TOKENS", 32)
    monkeypatch.setattr(chunked, "VOCABULARY", 64)
    hidden, weight, bias, targets = inputs(128, 1024, torch.float32)
    with Largest() as largest:
        losses, logsumexp = chunked.linear_cross_entropy(hidden, weight, bias, targets, 0.1)
        chunked.linear_cross_entropy_backward(
            torch.ones_like(losses), hidden, weight, bias, targets, logsumexp, 0.1
        )
    assert largest.elements == weight.numel() < 128 * 1024


def test_operators_are_sound_and_compile_whole() -> None:
    hidden, weight, bias, targets = inputs(6, 40, torch.float32)
    ops = torch.ops.blip_fast
    arguments = (hidden, weight, bias, targets, 0.1)
    torch.library.opcheck(ops.linear_cross_entropy.chunked, arguments)
    losses, logsumexp = ops.linear_cross_entropy.chunked(*arguments)
    torch.library.opcheck(
        ops.linear_cross_entropy_backward.chunked, (losses, *arguments[:4], logsumexp, 0.1)
    )

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(hidden.relu(), weight, bias, targets, 0.1).sum()

    leaves = [t.requires_grad_() for t in arguments[:3]]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected)


def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    arguments = inputs(6, 40, torch.float32)
    for implementation, expected in (
        ("chunked", ["blip_fast.linear_cross_entropy.chunked"]),
        ("reference", []),
    ):
        with kernels.use(implementation, "linear_cross_entropy"), Recorder() as recorder:
            kernels.linear_cross_entropy(*arguments)
        assert recorder.names == expected


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, bias, targets = inputs(6, 40, torch.float32)
    losses = kernels.linear_cross_entropy(hidden.requires_grad_(), weight, bias, targets, 0.1)
    (grad,) = torch.autograd.grad(losses.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_two_runs_are_bit_equal() -> None:
    hidden, weight, bias, targets = inputs(300, 5000, torch.bfloat16)

    def gradients() -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        losses = kernels.linear_cross_entropy(*leaves, targets, 0.1)
        return losses, *torch.autograd.grad(losses.sum(), leaves)

    assert all(a.equal(b) for a, b in zip(gradients(), gradients(), strict=True))


def test_shapes_and_dtypes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[T, K\] with T targets"):
        kernels.linear_cross_entropy(
            torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5), torch.zeros(2).long()
        )
    with pytest.raises(ValueError, match="does not fit weight"):
        kernels.linear_cross_entropy(
            torch.zeros(3, 4), torch.zeros(5, 6), torch.zeros(5), torch.zeros(3).long()
        )
    with pytest.raises(ValueError, match="they must agree"):
        kernels.linear_cross_entropy(
            torch.zeros(3, 4).bfloat16(), torch.zeros(5, 4), torch.zeros(5), torch.zeros(3).long()
        )
