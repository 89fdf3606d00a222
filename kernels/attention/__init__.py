"""Self-attention over images (dense) or texts (packed), causal or not."""

from __future__ import annotations

from torch import Tensor

from blip_fast.kernels._ops import Room
from blip_fast.kernels.attention import reference

_room = Room("attention")


def attention(
    qkv: Tensor,
    offsets: Tensor | None = None,
    max_length: int | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V within each sequence.

    Reads the fused projection as the matrix product leaves it, so that nothing is transposed.

    Args:
        qkv: dense [N, S, 3, H, D], all sequences of S tokens; or packed [T, 3, H, D], the
            sequences one after the other.
        offsets: packed only, [N + 1] int32: sequence n is rows offsets[n] to offsets[n + 1].
        max_length: packed only: the longest sequence, known on the host, so that no kernel has
            to ask the device.
        causal: a token sees itself and what stands before it in its sequence:

                1 0 0
                1 1 0
                1 1 1

    Returns:
        [N, S, H, D] or [T, H, D], in qkv's dtype.

    Raises:
        ValueError: where shapes do not fit, or one of `offsets` and `max_length` is missing.
    """
    if (offsets is None) != (max_length is None):
        raise ValueError("packed attention needs both offsets and max_length; one is missing")
    expected = 5 if offsets is None else 4
    if qkv.ndim != expected or qkv.shape[-3] != 3:
        wanted = "[N, S, 3, H, D]" if offsets is None else "[T, 3, H, D]"
        raise ValueError(f"qkv must be {wanted}; the shape is {tuple(qkv.shape)}")
    _room.choose(qkv)
    if offsets is None or max_length is None:
        return reference.dense_attention(qkv, causal)
    return reference.packed_attention(qkv, offsets, max_length, causal)
