"""Launch choices for GPUs. None was measured on one yet; each says what it rests on.

The room is bound by memory: at 128 images a step reads 226 MB a layer in bf16 and computes next to
nothing.
"""

from __future__ import annotations

import torch

# Attention to memory: 16 sequences of an image at once, the least that matrix units take: beams and
# samples are seldom more. 32 keys and values of 64 are 8 KB; with three stages a program has 16 KB
# of loads under way, and an SM several programs. 64 keys spill on sm_90, with either release.
MEMORY = {"ROWS": 16, "KEYS": 32, "num_warps": 4, "num_stages": 3}
# Exactly, 90 to 112 registers; without a limit ptxas (3.6, sm_90) takes 72, and spills.
MEMORY_EXACT = {"ROWS": 16, "KEYS": 16, "num_warps": 4, "num_stages": 1, "maxnreg": 128}
# Keys that a program takes. By the memory's length alone, never by the number of images, so that
# the order of sums does not depend on the batch: 577 keys are 3 programs, whose results a second
# kernel merges; its traffic is 3% of the memory's.
SPLIT_KEYS = 256
# Indices that are compared at once, when a program looks for its image's sequences.
CHUNK = 128

# Attention to the past: a program is one sequence and head. 82 to 217 registers; without a limit
# ptxas (3.9, sm_100) takes 96 in fp32, and spills.
PAST = {"POSITIONS": 32, "num_warps": 2, "num_stages": 2, "maxnreg": 224}


def memory(dtype: torch.dtype) -> dict[str, int]:
    """Tiles, warps and stages of attention to memory."""
    return MEMORY_EXACT if dtype == torch.float32 else MEMORY


def splits(keys: int) -> int:
    """Into how many parts a memory of so many keys is split."""
    return -(-keys // SPLIT_KEYS)


# Heads that csrc/cuda/decode_attention.cu is compiled for. On a GPU Triton goes first, and CUDA
# after it, until a measurement in bench/results says otherwise: `make gpu` races both. What CUDA
# does better on paper: a cluster of blocks adds up its parts in shared memory, where Triton needs
# a second kernel and the way through global memory.
CUDA_WIDTHS = (64, 88)


def cuda_obstacle(width: int) -> str:
    """Why the CUDA kernel does not take heads of that width; empty where it does."""
    if width in CUDA_WIDTHS:
        return ""
    able = " and ".join(map(str, CUDA_WIDTHS))
    return f"heads are {width} wide, and it is compiled for {able}; use Triton or the reference"
