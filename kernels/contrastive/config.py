"""Launch choices of the Triton kernels. None is measured on a GPU yet; each says why it is so."""

from __future__ import annotations

from typing import Any

import torch

# A tile of similarities, 32 rows (a batch of 32 on each GPU is BLIP's) by 64 entries of the bank,
# those of the features and of the momentum features from one read of the entries. A step through
# the features takes 128 bytes of each row. By bytes of an element: fp32 runs on the ordinary units,
# where a backward tile of 64 entries does not fit the registers.
FORWARD: dict[int, dict[str, Any]] = {
    2: {"ROWS": 32, "ENTRIES": 64, "STEP": 64, "num_warps": 4, "num_stages": 3},
    4: {"ROWS": 32, "ENTRIES": 64, "STEP": 32, "num_warps": 4, "num_stages": 3},
}
BACKWARD: dict[int, dict[str, Any]] = {
    2: {"ROWS": 32, "ENTRIES": 64, "STEP": 64, "num_warps": 8, "num_stages": 2},
    4: {"ROWS": 32, "ENTRIES": 32, "STEP": 32, "num_warps": 8, "num_stages": 2},
}
# Features whose width is no multiple of 16 are loaded element by element, with an address in two
# registers for each: of 64 entries these alone do not fit. No model has such features. Backward
# takes 152 to 168 registers; without a limit ptxas takes 128 in fp32 on sm_100, and spills.
ODD_FORWARD: dict[str, Any] = {"ENTRIES": 32, "STEP": 32}
ODD_BACKWARD: dict[str, Any] = {"ENTRIES": 16, "STEP": 32, "maxnreg": 168}

# Entries that a program of the forward pass reduces: 57,632 of them make 226 programs for 32 rows.
# It does not follow the number of rows, so that a row's loss does not depend on its neighbours.
ENTRIES_OF_PART = 256

# The second stage merges the programs' partial results of 16 rows, 64 programs at a time.
MERGE = {"ROWS": 16, "PARTS": 64}

# Feature columns whose gradient a program sums; wider features are served by several programs, each
# of which makes the similarities anew. BLIP's features have 256.
COLUMNS = 256

# Programs of the backward pass on each SM, which share the bank; together they hold 35 MB of
# partial gradients on an H200, whatever the batch is.
PROGRAMS_PER_SM = 2
REDUCE_ROWS = 8


def forward(element_size: int, width: int) -> dict[str, Any]:
    """Tile, warps and stages of the forward kernel."""
    return FORWARD[element_size] | (ODD_FORWARD if width % 16 else {})


def backward(element_size: int, width: int) -> dict[str, Any]:
    """Tile, warps and stages of the backward kernel."""
    return BACKWARD[element_size] | (ODD_BACKWARD if width % 16 else {})


def backward_parts(device: torch.device, row_programs: int, tiles: int) -> int:
    """Into how many parts the bank goes for the backward pass."""
    if device.type != "cuda":  # the interpreter: two, so that there is something to sum
        return min(2, tiles)
    programs = PROGRAMS_PER_SM * torch.cuda.get_device_properties(device).multi_processor_count
    return min(tiles, max(1, programs // row_programs))
