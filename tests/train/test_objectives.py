"""Losses, gradients and queues against BLIP step by step, on one process and on two."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference_med as med
import reference_training as reference
import torch
import training_cases as cases
from reference_med import State
from torch import Tensor

from blip_fast.config import Kind
from blip_fast.train.itc import EMPTY, MomentumContrast
from blip_fast.train.itm import Negatives

CLS, ENC, DEC = 101, 127, 126


def positives(ids: Tensor, queue: reference.Queue, kind: Kind) -> Tensor:
    if kind == "pretrain":
        return torch.eye(len(ids), len(ids) + queue.ids.numel())
    same = (ids[:, None] == torch.cat([ids, queue.ids])).float()
    return same / same.sum(1, keepdim=True)


def rank_losses(
    state: State,
    momentum: State,
    queue: reference.Queue,
    batches: list[Any],
    rank: int,
    alpha: float,
    kind: Kind,
    negatives: Negatives,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What one process computes; in retrieval, negatives are of all processes' batches."""
    batch, dtype = batches[rank], state["temp"].dtype
    images, texts = cases.normalised(batch.images).to(dtype), cases.padded(batch.text)
    hard = positives(batch.ids, queue, kind)
    itc, image_m, text_m = reference.itc(state, momentum, queue, images, texts, hard, alpha, CLS)
    tokens = med.vit(state, images)
    pool = [batch] if kind == "pretrain" else batches
    pool_tokens = torch.cat([med.vit(state, cases.normalised(b.images).to(dtype)) for b in pool])
    pool_texts = [row for b in pool for row in b.text.tolist()]
    chosen = cases.padded(cases.pack([pool_texts[i] for i in negatives.texts]))
    itm = reference.itm(state, tokens, texts, pool_tokens[negatives.images], chosen, ENC)
    losses = {"itc": itc, "itm": itm}
    if kind == "pretrain":
        losses["lm"] = reference.lm(state, tokens, texts, DEC, 0.1)
    return losses, image_m, text_m


def follow(
    kind: Kind, negatives: list[list[Negatives]], dtype: torch.dtype
) -> list[dict[str, Any]]:
    """The reference through the same steps, with the negatives that each process drew."""
    state, model = cases.build(kind, dtype)
    contrast = MomentumContrast(model, cases.QUEUE, cases.MOMENTUM, cases.ALPHA, 2, seed=3)
    queue, momentum = cases.queue_of(contrast, dtype), cases.momentum_of(state)
    world, results = len(negatives), []
    for step in range(cases.STEPS):
        state["temp"].data.clamp_(0.001, 0.5)
        reference.update_momentum(momentum, state, cases.MOMENTUM)
        alpha = cases.ALPHA * min(1, 0.5 * (step + 1) / 2)
        batches = [cases.pair_batch(step, rank) for rank in range(world)]
        losses, features = [], []
        for rank in range(world):
            own, *momentum_features = rank_losses(
                state, momentum, queue, batches, rank, alpha, kind, negatives[rank][step]
            )
            features.append(momentum_features)
            losses.append({name: loss.item() for name, loss in own.items()})
            (sum(own.values()) / world).backward()
        none = torch.full((4,), EMPTY)
        ids = [none if kind == "pretrain" else batch.ids for batch in batches]
        for (image_m, text_m), numbers in zip(features, ids, strict=True):
            queue.push(image_m, text_m, numbers)
        gradients = {name: t.grad.clone() for name, t in state.items() if t.grad is not None}
        results.append({"losses": losses, "gradients": gradients, "queue": copy.deepcopy(queue)})
        cases.descend(state.values())
    return results


def assert_equal(name: str, found: Tensor, plain: Tensor, truth: Tensor, scale: float) -> None:
    """Within 1e-5 of what is exact, or of what cancels to it, or twice plain fp32's own error."""
    truth = truth.reshape(found.shape)
    error = (found - truth).abs().max().item()
    plain_error = (plain.reshape(found.shape) - truth).abs().max().item()
    allowed = max(1e-5 * max(truth.abs().max().item(), scale), 2 * plain_error)
    assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"


def check(kind: Kind, ours: list[list[dict[str, Any]]]) -> None:
    """`ours` are the steps of each process."""
    negatives = [[step["negatives"] for step in steps] for steps in ours]
    plain = follow(kind, negatives, torch.float32)
    truth = follow(kind, negatives, torch.float64)
    for rank, steps in enumerate(ours):
        # Of all steps, because plain fp32's error of one number may be zero by chance.
        heats = (torch.stack([s["gradients"]["temp"] for s in t]) for t in (steps, plain, truth))
        assert_equal("temp", *heats, scale=0)
        for found, single, exact in zip(steps, plain, truth, strict=True):
            assert found["losses"] == pytest.approx(exact["losses"][rank], rel=1e-5)
            for name in found["gradients"].keys() - {"temp"}:
                # A bias sums what its weight's gradient is made of; the keys' sum to zero.
                near = exact["gradients"].get(name.replace(".bias", ".weight"), torch.zeros(1))
                values = (
                    found["gradients"][name],
                    single["gradients"][name],
                    exact["gradients"][name],
                )
                assert_equal(name, *values, scale=near.abs().max().item())
            queues = found["queue"], single["queue"], exact["queue"]
            assert_equal("image queue", *(queue.images for queue in queues), scale=1)
            assert_equal("text queue", *(queue.texts for queue in queues), scale=1)
            assert torch.equal(found["queue"].ids, exact["queue"].ids)
            assert found["queue"].pointer == exact["queue"].pointer


@pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
def test_one_process(kind: Kind) -> None:
    check(kind, [cases.run(kind, 0, 1)])


@pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
def test_two_processes(kind: Kind, tmp_path: Path) -> None:
    script = Path(cases.__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, script, kind, str(rank), "2", tmp_path], env=environment)
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    check(kind, [torch.load(tmp_path / f"{r}.pt", weights_only=False) for r in range(2)])
