"""ITC with soft targets, against the loss written row by row in fp64."""

from __future__ import annotations

import pytest
import torch
from forcing import Recorder
from gate import Largest
from tolerance import assert_close_as_torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.kernels.contrastive import chunked, reference


@pytest.fixture(params=["reference", "chunked"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Each one, the chunked with parts so small that there are several and a rest."""
    monkeypatch.setattr(chunked, "BANK", 4)
    with kernels.use(request.param, "contrastive"):
        yield request.param


def features(rows: int) -> Tensor:
    return F.normalize(torch.randn(rows, 12, dtype=torch.float64), dim=1)


def formula(
    query: Tensor,
    momentum: Tensor,
    bank: Tensor,
    temperature: Tensor,
    ids: Tensor,
    bank_ids: Tensor,
    alpha: float,
) -> Tensor:
    losses = []
    for row in range(len(query)):
        soft = (bank @ momentum[row] / temperature).softmax(0)
        same = (bank_ids == ids[row]).double()
        target = alpha * soft + (1 - alpha) * same / same.sum()
        losses.append(-(target * (bank @ query[row] / temperature).log_softmax(0)).sum())
    return torch.stack(losses)


def inputs() -> tuple[Tensor, ...]:
    """Query, momentum and bank in fp64; ids of which some repeat, some in the bank are no one's."""
    ids = torch.tensor([7, 8, 9, 7])
    bank_ids = torch.tensor([7, 8, 9, 7, -100, 8, 3, -100, 5, 5, 5])
    return features(4), features(4), features(11), ids, bank_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.07, 0.001, 0.5])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_losses_and_every_gradient(
    implementation: str, alpha: float, temperature: float, dtype: torch.dtype
) -> None:
    query, momentum, bank, *ids = inputs()
    query, momentum, bank = (t.to(dtype) for t in (query, momentum, bank))
    # Of several, because torch's error of the temperature's one number may be zero by chance.
    grads = torch.randn(12, 4)

    def run(function, high: torch.dtype) -> list[Tensor]:
        leaf = query.to(high).requires_grad_()
        heat = torch.tensor(temperature).to(wide_heat(high)).requires_grad_()
        losses = function(leaf, momentum.to(high), bank.to(high), heat, *ids, alpha)
        pairs = [
            torch.autograd.grad(losses, (leaf, heat), grad, retain_graph=True)
            for grad in grads.to(losses.dtype)
        ]
        return [losses.detach(), *(torch.stack(of_one) for of_one in zip(*pairs, strict=True))]

    def wide_heat(high: torch.dtype) -> torch.dtype:
        return torch.float64 if high == torch.float64 else torch.float32

    actual = run(kernels.contrastive, dtype)
    same = run(reference.contrastive, dtype)
    truth = run(formula, torch.float64)
    for name, *triple in zip(("loss", "features", "heat"), actual, same, truth, strict=True):
        assert_close_as_torch(f"{implementation} {name}", *triple)


def test_gradient_flows_to_features_and_temperature_alone(implementation: str) -> None:
    leaves = [features(3), features(3), features(6), torch.tensor(0.07, dtype=torch.float64)]
    query, momentum, bank, temperature = (t.float().requires_grad_() for t in leaves)
    ids = torch.arange(3)
    bank_ids = torch.cat([ids, torch.full((3,), -100)])
    kernels.contrastive(query, momentum, bank, temperature, ids, bank_ids, 0.4).sum().backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    assert temperature.grad is not None and temperature.grad.abs() > 0
    assert momentum.grad is None and bank.grad is None


def test_no_rows_and_other_layouts(implementation: str) -> None:
    query, momentum, bank, ids, bank_ids = inputs()
    heat = torch.tensor(0.07)
    dense = [t.float() for t in (query, momentum, bank)]
    strided = [t.t().contiguous().t() for t in dense]
    expected = kernels.contrastive(*dense, heat, ids, bank_ids, 0.4)
    torch.testing.assert_close(kernels.contrastive(*strided, heat, ids, bank_ids, 0.4), expected)
    nothing = kernels.contrastive(
        dense[0][:0], dense[1][:0], dense[2], heat, ids[:0], bank_ids, 0.4
    )
    assert nothing.shape == (0,)


def test_similarities_of_one_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "BANK", 64)
    query, momentum, bank = (torch.randn(n, 8) for n in (16, 16, 1000))
    ids, bank_ids, heat = torch.arange(16), torch.arange(1000), torch.tensor(0.1)
    arguments = (query, momentum, bank, heat, ids, bank_ids)
    with Largest() as largest:
        losses, statistics = chunked.contrastive(*arguments, 0.4)
        chunked.contrastive_backward(losses, *arguments, statistics, 0.4)
    assert largest.elements == 2 * 16 * 64


def test_operators_are_sound_and_compile_whole() -> None:
    query, momentum, bank, ids, bank_ids = inputs()
    arguments = (*(t.float() for t in (query, momentum, bank)), torch.tensor(0.07), ids, bank_ids)
    ops = torch.ops.blip_fast
    torch.library.opcheck(ops.contrastive.chunked, (*arguments, 0.4))
    losses, statistics = ops.contrastive.chunked(*arguments, 0.4)
    torch.library.opcheck(ops.contrastive_backward.chunked, (losses, *arguments, statistics, 0.4))

    def loss(query: Tensor, heat: Tensor) -> Tensor:
        return kernels.contrastive(
            query * 2, arguments[1], arguments[2], heat, ids, bank_ids, 0.4
        ).sum()

    leaves = [arguments[0].requires_grad_(), arguments[3].requires_grad_()]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with kernels.use("chunked", "contrastive"):
        expected = torch.autograd.grad(loss(*leaves), leaves)
        torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected)


def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    query, momentum, bank, ids, bank_ids = inputs()
    arguments = (*(t.float() for t in (query, momentum, bank)), torch.tensor(0.07), ids, bank_ids)
    for name, expected in (("chunked", ["blip_fast.contrastive.chunked"]), ("reference", [])):
        with kernels.use(name, "contrastive"), Recorder() as recorder:
            kernels.contrastive(*arguments, 0.4)
        assert recorder.names == expected


def test_shapes_are_checked() -> None:
    query, bank, one = torch.zeros(3, 4), torch.zeros(6, 4), torch.tensor(0.07)
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.contrastive(query, query, torch.zeros(6, 5), one, ids, torch.arange(6), 0.4)
    with pytest.raises(ValueError, match="need as many ids; there are 3 and 5"):
        kernels.contrastive(query, query, bank, one, ids, torch.arange(5), 0.4)
    with pytest.raises(ValueError, match="temperature must be a scalar"):
        kernels.contrastive(query, query, bank, torch.ones(3), ids, torch.arange(6), 0.4)
