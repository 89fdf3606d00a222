"""The operations that a BLIP model is made of, one room each.

A room is a folder: `__init__.py` holds the public function and its gradient, `reference.py` says
in plain PyTorch what it computes. Other implementations of a room are opaque operators of the
torch library `blip_fast`, one overload each (`blip_fast::add_layernorm.native`): compiled C++ or
oneDNN for CPUs, Triton or CUDA C++ for GPUs, and PyTorch in parts (`chunked`) for both.

Which implementation runs: the one asked for by `use(...)` or `BLIP_FAST_KERNELS`, which runs or
raises; else the first in the room's order that can run on the tensors' device, the reference
last. The model never knows which.
"""

from __future__ import annotations

from blip_fast.kernels._ops import Choice, choices, environment, read_environment, use
from blip_fast.kernels.add_layernorm import add_layernorm, layernorm, layernorm_of_sum
from blip_fast.kernels.attention import attention
from blip_fast.kernels.contrastive import contrastive
from blip_fast.kernels.cross_attention import cross_attention
from blip_fast.kernels.decode_attention import decode_attention, decode_cross_attention
from blip_fast.kernels.linear import linear
from blip_fast.kernels.linear.mlp import mlp
from blip_fast.kernels.linear_cross_entropy import linear_cross_entropy
from blip_fast.kernels.linear_int8 import QuantizedWeight, linear_int8
from blip_fast.kernels.patchify import patchify
from blip_fast.kernels.sample import beam_step, penalise, sample

__all__ = [
    "Choice",
    "QuantizedWeight",
    "add_layernorm",
    "attention",
    "beam_step",
    "choices",
    "contrastive",
    "cross_attention",
    "decode_attention",
    "decode_cross_attention",
    "layernorm",
    "layernorm_of_sum",
    "linear",
    "linear_cross_entropy",
    "linear_int8",
    "mlp",
    "patchify",
    "penalise",
    "sample",
    "use",
]

read_environment(environment())
