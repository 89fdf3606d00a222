"""Launch choices of the Triton kernels. None is measured on a GPU yet; each says why it is so."""

from __future__ import annotations

from typing import Any

import torch

# A tile of logits: 128 x 128 from steps of 64; fp32, on the ordinary units, 64 x 64 from 32. Widths
# that are no multiple of the step take the small tile: their rows are loaded element by element.
HALF: dict[str, Any] = {"TOKENS": 128, "WORDS": 128, "STEP": 64, "num_warps": 8, "num_stages": 3}
FULL: dict[str, Any] = {"TOKENS": 64, "WORDS": 64, "STEP": 32, "num_warps": 4, "num_stages": 3}

# Tiles of the vocabulary that one program reduces: the partial results, 16 bytes a token and
# program, are then 1.6% of bf16 logits. It does not follow the number of tokens, so that a token's
# loss does not depend on its neighbours.
TILES = 4

# Tiles of tokens that share a part of the weight while it is in L2: 16 are 2,048 tokens, 3 MB,
# beside about as much of the weight.
GROUP = 16

# The second stage merges the programs' partial results of 16 tokens, 64 programs at a time.
MERGE = {"TOKENS": 16, "PARTS": 64}

# The backward pass holds the logits' gradient of this many tokens by this many words, in the
# hidden states' dtype: at most 64 MB in bf16, whatever the batch is, 32 MB at 4,096 tokens (all
# their logits are 250 MB), and matrices large enough for cuBLAS.
BACKWARD_TOKENS = 8192
BACKWARD_WORDS = 4096


def tiles(dtype: torch.dtype, width: int) -> dict[str, Any]:
    """Tile, warps and stages of the kernels that make logits."""
    return dict(FULL if dtype == torch.float32 or width % HALF["STEP"] else HALF)
