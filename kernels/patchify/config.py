"""Launch choices of the Triton kernel. None is measured on a GPU yet; each says why it is so."""

from __future__ import annotations

from typing import Any

# 16 elements a lane of four warps: of a uint8 image that is one load of 16 bytes, a whole pixel row
# of a patch of 16.
ELEMENTS = 2048
WARPS = 4


def launch(patch_size: int, columns: int) -> dict[str, Any]:
    """Tile and warps for patches of `patch_size`, of which an image has `columns` in a row."""
    side = 1 << (patch_size - 1).bit_length()
    across = 1 << (columns - 1).bit_length() if columns else 1
    return {"SIDE": side, "PATCHES": max(1, min(across, ELEMENTS // side**2)), "num_warps": WARPS}
