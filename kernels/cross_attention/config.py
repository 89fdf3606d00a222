"""Launch choices of the Triton kernels. None was measured on a GPU yet; each says what it rests on.

ROWS are queries, KEYS keys of a tile. All texts of an image are rows of one table, so that a tile
of queries is full where an image has several texts. Reading the memory bounds the room wherever an
image has fewer than about 200 rows: tiles of 64 queries multiply fast enough even half empty. One
choice for every number of rows, so that a result does not depend on what else is in the batch.
"""

from __future__ import annotations

from typing import Any

# Forward, by padded width of a head; 16-bit. 64 queries are one warp group; at 128 its result and
# queries alone are 96 registers a lane: with 4 warps it spills on sm_80.
FORWARD: dict[int, dict[str, Any]] = {
    64: {"ROWS": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3},
    # Without a limit ptxas (3.6, sm_80) takes 128 registers here, and spills.
    128: {"ROWS": 64, "KEYS": 32, "num_warps": 8, "num_stages": 2, "maxnreg": 168},
}
# Backward, queries.
QUERIES: dict[int, dict[str, Any]] = {
    64: {"ROWS": 64, "KEYS": 64, "num_warps": 4, "num_stages": 2},
    # It needs 137 to 168 registers; without a limit ptxas (3.6, sm_100) takes 64, and spills.
    128: {"ROWS": 64, "KEYS": 64, "num_warps": 8, "num_stages": 2, "maxnreg": 168},
}
# Backward, keys: few rows an image, so few at once; all programs of an image read its rows.
PAIRS: dict[int, dict[str, Any]] = {
    64: {"ROWS": 32, "KEYS": 64, "num_warps": 4, "num_stages": 2},
    128: {"ROWS": 32, "KEYS": 64, "num_warps": 8, "num_stages": 2},
}
# Texts whose indices are compared at once, when rows are grouped by image.
CHUNK = 512
