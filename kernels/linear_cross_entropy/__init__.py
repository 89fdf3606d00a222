"""Language-model head and label-smoothed cross-entropy, one loss a token."""

from __future__ import annotations

from torch import Tensor

from blip_fast.kernels._ops import Room
from blip_fast.kernels.linear_cross_entropy import reference

IGNORE = -100

_room = Room("linear_cross_entropy")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum_v y_v log softmax(hidden @ weight.T + bias)_v for each row.

    y is 1 - s at the target plus s / V everywhere, s the label smoothing (BLIP trains with 0.1).
    Without smoothing, a loss is minus the token's log-probability.

    Args:
        hidden: [T, K].
        weight: [V, K].
        bias: [V].
        targets: [T] int64 in 0..V-1, or -100 for a row that does not count.
        label_smoothing: in 0..1.

    Returns:
        [T] float32; 0 where the row does not count.

    Raises:
        ValueError: where shapes do not fit.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden must be [T, K] with T targets; they are {tuple(hidden.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if weight.shape[1] != hidden.shape[1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} does not fit weight {tuple(weight.shape)} and bias "
            f"{tuple(bias.shape)}"
        )
    _room.choose(hidden)
    return reference.linear_cross_entropy(hidden, weight, bias, targets, label_smoothing)
