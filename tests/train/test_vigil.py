"""Reports of steps: means over micro-batches, looked at in order, late where that is asked for."""

from __future__ import annotations

import pytest
import torch
from training import CPU

from blip_fast.train.vigil import NonFinite, Seen, Vigil


def report(vigil: Vigil, step: int, *losses: float, norm: float = 1.0, stop: bool = False) -> None:
    vigil.report(
        step,
        0.1,
        [{"lm": torch.tensor(value), "itm": torch.tensor(2.0)} for value in losses],
        [[f"{step}.{i}a", f"{step}.{i}b"] for i in range(len(losses))],
        torch.tensor(norm),
        stop,
        skipped=step,
    )


def test_mean_of_micro_batches() -> None:
    vigil = Vigil(CPU)
    report(vigil, 1, 1.0, 4.0, norm=3.0, stop=True)
    assert list(vigil.look()) == [Seen(1, 0.1, {"lm": 2.5, "itm": 2.0}, 3.0, True, 1)]
    assert list(vigil.look(at_all=True)) == []


def test_looked_at_a_step_later() -> None:
    vigil = Vigil(CPU, ahead=1)
    report(vigil, 1, 1.0)
    assert list(vigil.look()) == []
    report(vigil, 2, 2.0)
    assert [seen.step for seen in vigil.look()] == [1]
    report(vigil, 3, 3.0)
    assert [seen.step for seen in vigil.look(at_all=True)] == [2, 3]
    assert Vigil(torch.device("cuda", 0)).ahead == 1 and Vigil(CPU).ahead == 0


def test_the_micro_batch_is_named() -> None:
    vigil = Vigil(CPU, ahead=1)
    report(vigil, 7, 1.0, float("inf"))
    report(vigil, 8, 1.0)
    expected = r"step 7: the loss lm is inf in the batch of 7\.1a, 7\.1b\. The checkpoints"
    with pytest.raises(NonFinite, match=expected):
        list(vigil.look())


def test_gradients_name_the_whole_step() -> None:
    vigil = Vigil(CPU)
    report(vigil, 7, 1.0, 1.0, norm=float("nan"))
    expected = "gradients are not finite after the batch of 7.0a, 7.0b, 7.1a, 7.1b"
    with pytest.raises(NonFinite, match=expected):
        list(vigil.look())
