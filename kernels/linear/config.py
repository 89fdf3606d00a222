"""Up to how many rows the native kernel runs, and the measurements behind that.

bfloat16, one Zen 4 core, 768 -> 3072, cold weights, the least of many alternating calls, in us:

    rows                        1     4     8    12    24    32   128   577   4616
    F.linear                  460   550   600   690   940  1090  2910  14500  107300
    oneDNN, packed            230   240   310   370   610   770  2660  12100   97900
    native, AVX512-BF16       160   230   205   310   580   765
    native, AVX-512           220   300   540    -     (16 rows: 900, F.linear 800)
    native, AVX2              210   480   860

`F.linear` packs the weight anew in every call; the native kernel reads it as it lies. Up to 32 rows
it is at least as fast as oneDNN on a packed weight, so matrices that meet few rows only, those of
decoding, are never packed. Those that meet more (vision, memory, texts in a batch) are held twice
from then on: 0.2 GB more for a base model's bf16 vision and memory projections.

oneDNN's post-operations are always fused. GELU at 4616 x 768 -> 3072: 104.3 ms fused, 104.9 apart
(two threads 106.7 and 107.2); 0.5-2% less at 64 to 577 rows; and no second result of 28 MB is
touched. The residual at 4616 x 768 -> 768: 25.6 and 25.2 ms on one thread, 28.0 and 36.0 on two.

float32, the same product: `F.linear` 610 (1 row), 900 (4), 1080 (8), 1810 (24), 2160 (32); native
340, 470, 750, 1450, 1820 with AVX-512; 480, 740, 1010 and at 16 rows 1590 against 1500 with AVX2.

AMX is not measured yet. There the native kernel runs its AVX512-BF16 code: 32 multiply-adds a cycle
take as long for 16 rows as the weight takes from memory, and oneDNN's tiles are faster beyond.
"""

from __future__ import annotations

import torch

# The most rows of x, by instruction set and dtype; more go to oneDNN, or to the reference.
NATIVE_ROWS: dict[str, dict[torch.dtype, int]] = {
    "amx": {torch.bfloat16: 16, torch.float32: 32},
    "avx512bf16": {torch.bfloat16: 32, torch.float32: 32},
    "avx512": {torch.bfloat16: 2, torch.float32: 32},
    "avx2": {torch.bfloat16: 2, torch.float32: 8},
    "portable": {torch.bfloat16: 0, torch.float32: 1},
}
