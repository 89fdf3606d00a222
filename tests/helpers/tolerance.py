"""The rule by which all rooms are judged.

An implementation may err, against the reference in higher precision, at most twice as much as
plain PyTorch errs in the same dtype, plus one rounding of the largest value. The tolerance is
measured on the problem at hand, never typed.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALLOWANCE = 2.0


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision that results in `dtype` are judged in."""
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32


def assert_close_as_torch(name: str, actual: Tensor, torch_same: Tensor, truth: Tensor) -> None:
    """Judge `actual` by the error of plain PyTorch in the same dtype.

    Args:
        truth: the reference in `wide(actual.dtype)`, not rounded back.
    """
    assert actual.shape == truth.shape, f"{name}: {actual.shape} is not {truth.shape}"
    assert actual.dtype == torch_same.dtype, f"{name}: {actual.dtype} is not {torch_same.dtype}"
    if not truth.numel():
        return
    assert torch.isfinite(actual).all() == torch.isfinite(truth).all(), f"{name}: not finite"
    floor = torch.finfo(actual.dtype).eps * truth.abs().max()
    error = (actual.to(truth.dtype) - truth).abs()
    same = (torch_same.to(truth.dtype) - truth).abs()
    for kind, ours, theirs in (("largest", error.max(), same.max()),
                               ("mean", error.mean(), same.mean())):  # fmt: skip
        allowed = ALLOWANCE * theirs + floor
        share = (ours / allowed).item() if allowed > 0 else 0.0
        print(f"{name}: {kind} error {ours.item():.3g}, {share:.0%} of the allowance")
        assert ours <= allowed, f"{name}: {kind} error {ours.item():.3g} is above {allowed:.3g}"
