"""How ITC is launched: BLIP's batch and queue, one row, and features of an odd width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from blip_fast.kernels.contrastive import triton

MATRIX = {"forward_kernel", "backward_kernel"}


def problems(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    for rows, entries, width in ((32, 57632, 256), (1, 1, 256), (33, 1001, 300)):
        yield partial(_run, torch.zeros(rows, width, dtype=dtype), torch.zeros(entries, width))


def smallest(dtype: torch.dtype) -> None:
    _run(torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1))


def _run(features: torch.Tensor, bank: torch.Tensor) -> None:
    rows, entries = len(features), len(bank)
    tensors = (features, features, bank.to(features.dtype), torch.ones(()))
    ids = (torch.zeros(rows).long(), torch.zeros(entries).long())
    losses, statistics = triton.contrastive(*tensors, *ids, 0.4)
    triton.contrastive_backward(losses, *tensors, *ids, statistics, 0.4)
