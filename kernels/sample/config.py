"""Launch choices of the Triton kernels. None is measured on a GPU yet; each says why it is so."""

from __future__ import annotations

from typing import Any

# Scores that one program ranks: a vocabulary of 30,524 is 15 programs a row, so that a row alone
# occupies 15 SMs.
PART = 2048
PART_WARPS = 8

# Candidates that one program of the next stages ranks, 32 a lane as 64-bit integers at the most.
MERGED = 4096
MERGE_WARPS = 8

# The most candidates a row that are found so. More, or all, are sorted by torch, whose radix sort a
# comparing one does not reach.
MOST = 1024

# Ranks that the draw takes at once; exponentials in fp64 are what it spends its time on. It needs
# 72 registers at the most; without a limit ptxas rounds down to 48 and spills one.
DRAW = {"TILE": 1024, "num_warps": 8, "maxnreg": 96}

# Tokens of a text that are penalised at once.
HELD: dict[str, Any] = {"HELD": 128, "num_warps": 1}
