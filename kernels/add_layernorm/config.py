"""Launch choices of the Triton kernels. None is measured on a GPU yet; each says why it is so.

The room is bound by memory: at [147,712, 768] in bf16 it reads and writes 0.9 GB and computes next
to nothing. What counts is how many loads are under way: an H200 needs about 25 KB of them on each
SM to be busy (4.8 TB/s, 700 ns, 132 SMs).
"""

from __future__ import annotations

from typing import Any

import torch

# The widest row that a program holds in registers: 16 warps of 8 elements a lane.
MAX_WIDTH = 4096

# Forward: one warp and 1024 elements a program, so that a row of a base or large model is reduced
# by shuffles alone; an SM holds 32 such programs, with 3 KB of loads each. Wider rows get a warp
# for every 256 elements; narrow ones share a program.
FORWARD_ELEMENTS = 1024
# Of rows whose width is no multiple of 16 elements come one by one: 109 to 163 registers of a lane.
# Without a limit ptxas (3.6, float16) takes 128, and spills.
ODD_FORWARD = {"maxnreg": 168}

# Backward: four warps and four rows of 1024 at once, so that a reduction's barrier serves four rows
# and a lane keeps 16 partial sums for the gradients of weight and bias instead of 64. fp32 takes
# eight: what is loaded ahead of a narrow or odd row does not fit the registers of four.
BACKWARD_ELEMENTS = 4096
BACKWARD_WARPS = {2: 4, 4: 8}

# Programs of the backward pass on each SM, which share the rows: at 165 registers three of them
# fit. Each writes two rows of partial sums, at 4,616 rows of 768 in bf16 a twelfth of all bytes.
PROGRAMS_PER_SM = 3

# Tiles that are loaded ahead of the one at hand, through shared memory: 8 KB a tensor in bf16.
STAGES = 2

# The second stage sums the programs' partial rows, 32 columns a program, 64 rows at a time.
REDUCE = {"ROWS": 64, "COLUMNS": 32}


def forward(width: int) -> dict[str, Any]:
    """Tile and warps of the forward kernel for rows of `width` elements."""
    block = _power_of_two(width)
    warps = block // 256 if block > FORWARD_ELEMENTS else 1
    launch = {"ROWS": max(1, FORWARD_ELEMENTS // block), "BLOCK": block, "num_warps": warps}
    return launch | (ODD_FORWARD if warps == 1 and width % 16 else {})


def backward(width: int, element_size: int) -> dict[str, Any]:
    """Tile and warps of the backward kernel for rows of `width` elements."""
    block = _power_of_two(width)
    return {
        "ROWS": max(1, BACKWARD_ELEMENTS // block),
        "BLOCK": block,
        "num_warps": max(BACKWARD_WARPS[element_size], block // 256),
        "STAGES": STAGES,
    }


def programs(device: torch.device) -> int:
    """How many programs share the rows of the backward pass, where there are rows enough."""
    if device.type != "cuda":  # the interpreter: few, so that each has several tiles
        return PROGRAMS_PER_SM
    return PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count


def _power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()
