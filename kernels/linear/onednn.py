"""Linear by oneDNN, the library inside torch, on packed weights.

`F.linear` brings a weight into oneDNN's order of blocks in every call. Here the packed copy is kept
for as long as the weight lives and does not change, unless its first product has so many rows that
packing costs next to nothing: then it is made, used and dropped (`config.py` has the limit).

For bfloat16 only. In float32 the packed product would take 0.82-0.91 of `F.linear`'s time, but it
errs twice as much (3.6e-6 against 1.7e-6 at 3 x 33 -> 17; 1.3e-4 against 0.6e-4 at K = 3072), which
is more than a room may.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from blip_fast.kernels.linear import reference
from blip_fast.kernels.linear.config import DROPPED_ROWS

_CHANGES_UNSEEN = "_blip_fast_changes_unseen"


def can_keep(weight: Tensor) -> bool:
    """Whether a change of the weight would be seen, so that a packed copy may be kept.

    A weight in training changes at every step, and optimizers may write through `.data`, which
    leaves no trace. Inference tensors count no versions at all.
    """
    unseen = getattr(weight, _CHANGES_UNSEEN, False)
    return not (weight.requires_grad or weight.is_inference() or unseen)


def changes_unseen(weight: Tensor) -> None:
    """Say that the content of a weight changes without a trace, so that no copy is kept.

    FSDP2 gathers a weight into the same tensor at each step and leaves its version as it was.
    """
    setattr(weight, _CHANGES_UNSEEN, True)


@dataclass(frozen=True)
class _Packed:
    """A weight in oneDNN's order, and what the weight was when it was packed."""

    tensor: Tensor
    version: int
    address: int
    storage: StorageWeakRef  # held weakly, so that no other storage can take its identity

    def is_of(self, weight: Tensor) -> bool:
        return (
            self.version == weight._version
            and self.address == weight.data_ptr()
            and self.storage.cdata == weight.untyped_storage()._cdata
            and self.tensor.shape == weight.shape
            and self.tensor.dtype == weight.dtype
        )


_kept = WeakTensorKeyDictionary()


def _pack(weight: Tensor, rows: int) -> Tensor:
    """The weight in oneDNN's order, for a product with so many rows."""
    if not can_keep(weight):
        return torch.ops.mkldnn._reorder_linear_weight(weight)
    packed = _kept.get(weight)
    if packed is not None and packed.is_of(weight):
        return packed.tensor
    _kept.pop(weight, None)
    storage = StorageWeakRef(weight.untyped_storage())
    tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    if rows < DROPPED_ROWS:
        _kept[weight] = _Packed(tensor, weight._version, weight.data_ptr(), storage)
    return tensor


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, residual: Tensor | None
) -> Tensor:
    """The operator's schema; see `blip_fast.kernels.linear` for shapes."""
    if not x.numel() or not weight.numel():  # oneDNN takes no empty matrices
        return reference.linear(x, weight, bias, "gelu" if gelu else None, residual)
    packed = _pack(weight, x.numel() // x.shape[-1])
    if gelu:
        y = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "gelu", [], "none")
        return y if residual is None else y.add_(residual)
    if residual is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
