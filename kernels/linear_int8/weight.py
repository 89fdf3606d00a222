"""A weight of a linear as int8: quantised by rows, and packed as processors multiply bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# csrc/cpu/linear_int8.cpp has the same numbers.
PANEL, QUAD = 32, 4
LEVELS = 127  # from 0 to a row's largest magnitude; -128 is not used
LEAST = 1e-30  # a row's largest magnitude counts at least as much, so that zeros stay zeros
ZERO = 128  # the byte that stands for 0 in a quantised x


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows to integers of -127 to 127, symmetrically, by each row's largest magnitude.

    Args:
        x: [..., K].

    Returns:
        [..., K] float32, whole numbers, and the scales [..., 1] float32: their product is about x.
        NaN throughout a row that has an infinity or a NaN.
    """
    x = x.float()
    if not x.shape[-1]:
        return x, x.new_full((*x.shape[:-1], 1), LEAST / LEVELS)
    top = x.abs().amax(-1, keepdim=True).clamp_min(LEAST)
    top = torch.where(top.isinf(), torch.nan, top)
    return (x * (LEVELS / top)).round(), top / LEVELS


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [N, K] as int8 with a scale for each row; `of` makes it.

    Attributes:
        packed: [panels, quads, 32, 4] int8: rows by 32, columns by 4, zeros beyond N and K.
        scales: [N] float32.
        starts: [panels * 32] int32, where sums begin: -128 times the sum of each row, because x
            is multiplied as bytes around 128.
        width: K.
    """

    packed: Tensor
    scales: Tensor
    starts: Tensor
    width: int

    @classmethod
    def of(cls, weight: Tensor) -> QuantizedWeight:
        """Quantise a weight [N, K] of any floating dtype.

        Raises:
            ValueError: where it is no matrix or has values that are not finite.
        """
        if weight.ndim != 2:
            raise ValueError(f"a weight is [N, K]; this one is {tuple(weight.shape)}")
        integers, scales = quantise_rows(weight.detach())
        if not scales.isfinite().all():
            raise ValueError("the weight has infinities or NaN; int8 has none: keep it floating")
        n, k = weight.shape
        panels, quads = -(-n // PANEL), -(-k // QUAD)
        full = torch.zeros(panels * PANEL, quads * QUAD, dtype=torch.int8, device=weight.device)
        full[:n, :k] = integers.to(torch.int8)
        starts = (-ZERO * full.sum(1, dtype=torch.int64)).int()
        packed = full.view(panels, PANEL, quads, QUAD).transpose(1, 2).contiguous()
        return cls(packed, scales.flatten(), starts, k)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), of the weight before it was quantised."""
        return self.scales.numel(), self.width

    def integers(self) -> Tensor:
        """[N, K] int8, unpacked."""
        panels, quads = self.packed.shape[:2]
        full = self.packed.transpose(1, 2).reshape(panels * PANEL, quads * QUAD)
        return full[: self.scales.numel(), : self.width]

    def dequantised(self) -> Tensor:
        """[N, K] float32: what the weight has become."""
        return self.integers().float() * self.scales[:, None]
