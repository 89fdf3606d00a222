"""Launch choices of the Triton kernels. None was measured on a GPU yet; each says what it rests on.

ROWS are queries, KEYS keys of a tile. What is known without a GPU: registers and spills of each, on
sm_80, sm_90 and sm_100, by `tests/kernels/test_triton_compiles.py`.
"""

from __future__ import annotations

from typing import Any

import torch

# A head is padded to a power of two: 64 as it is, 88 to 128. Above, registers do not suffice.
MAX_WIDTH = 128

# Forward, 16-bit, heads of 64: two warp groups of 64 queries each; 4 warps spill on sm_100.
# Without a limit ptxas (3.6, sm_100) takes 128 registers for packed texts, and spills.
# Not measured yet: KEYS 128, and 3 stages.
FORWARD = {
    64: {"ROWS": 128, "KEYS": 64, "num_warps": 8, "num_stages": 3, "maxnreg": 168},
    128: {"ROWS": 128, "KEYS": 64, "num_warps": 8, "num_stages": 2},
}
# Backward, queries: three products a tile, so one accumulator and two tiles of scores are alive.
QUERIES = {
    64: {"ROWS": 128, "KEYS": 64, "num_warps": 8, "num_stages": 2},
    128: {"ROWS": 64, "KEYS": 64, "num_warps": 4, "num_stages": 2},
}
# Backward, keys: four products, two accumulators; 4 warps spill 8 bytes at 128 (3.9, sm_90).
PAIRS = {
    64: {"ROWS": 64, "KEYS": 128, "num_warps": 8, "num_stages": 2},
    128: {"ROWS": 32, "KEYS": 64, "num_warps": 8, "num_stages": 2},
}
# float32 is multiplied exactly, without matrix units. Operands of a product lie in registers whole:
# with 4 warps these tiles spill up to 4344 bytes (Triton 3.9, sm_90), with 8 they need 62 to 174.
EXACT = {
    # Unasked, ptxas (3.6, sm_90) takes 64 registers for the memory's forward, and spills. Any
    # limit keeps it from that; below 192 the gradients of the queries spill.
    64: {"ROWS": 32, "KEYS": 32, "num_warps": 8, "num_stages": 1, "maxnreg": 255},
    128: {"ROWS": 16, "KEYS": 16, "num_warps": 8, "num_stages": 1},
}


def obstacle(width: int) -> str:
    """Why heads of a width are not for the Triton kernels; empty where they are."""
    if 0 < width <= MAX_WIDTH:
        return ""
    return f"heads are {width} wide; from 1 to {MAX_WIDTH} are possible"


def block(width: int) -> int:
    """The power of two to which a head is padded, 64 at the least."""
    return 64 if width <= 64 else 128


def launch(table: dict[int, dict[str, Any]], width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Tiles, warps and stages from one of the tables above."""
    return (EXACT if dtype == torch.float32 else table)[block(width)]
