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
decoding, are never packed. Those that meet more (one image, texts in a batch) are held twice from
then on: 0.2 GB more for a base model's bf16 vision and memory projections.

That is dear where it saves little. Packing in every call against a kept copy, processor time of one
core, medians of alternating calls with cold weights, in ms:

    rows                     300          577          1154         2308         4616
    768 -> 2304          6.2 /  5.2  10.9 / 10.0  20.6 / 19.4  39.8 / 38.7   79.1 /  78.3
    768 -> 768           2.1 /  1.7   4.0 /  3.5   7.1 /  6.7  13.2 / 12.9   26.1 /  25.8
    768 -> 3072, GELU    8.8 /  7.4  16.6 / 15.4  28.9 / 27.6  57.1 / 54.4  111.3 / 109.6
    3072 -> 768          9.6 /  6.8  16.4 / 13.8  27.7 / 24.8  53.3 / 49.7  104.3 / 101.4
    a layer's sum          29 %          12 %         7 %          5 %          2 %

Given the weight as it lies, oneDNN packs parts of it again and again: 5% more than a kept copy even
at 4616 rows, 20% at 577.

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

# From so many rows of x on, a weight that has no packed copy yet gets one for this product alone.
DROPPED_ROWS = 4096
