"""Up to how many rows the native kernel runs, and the measurements behind that.

TO BE MEASURED
"""

from __future__ import annotations

import torch

# The most rows of x, by instruction set and dtype; more go to oneDNN.
NATIVE_ROWS: dict[str, dict[torch.dtype, int]] = {
    "avx512bf16": {torch.bfloat16: 32, torch.float32: 16},
    "avx512": {torch.bfloat16: 8, torch.float32: 16},
    "avx2": {torch.bfloat16: 4, torch.float32: 8},
    "portable": {torch.bfloat16: 0, torch.float32: 0},
}
