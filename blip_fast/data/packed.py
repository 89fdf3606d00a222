"""A long list of small rows in one block of memory.

A million rows as Python dictionaries take about a gigabyte, in every process that trains. As JSON
text in one block they take what they take on the disk, and a row is parsed when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np


class PackedRows:
    """JSON values found by number. Reading is safe from several threads."""

    def __init__(self, rows: Iterable[Any]) -> None:
        encode = json.JSONEncoder(separators=(",", ":")).encode  # one for all, it is slow to make
        text = bytearray()
        ends = [0]
        for row in rows:
            # ASCII, so that half a surrogate pair, which JSON may hold, is kept and not refused
            text += encode(row).encode("ascii")
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        return json.loads(self._text[self._ends[number] : self._ends[number + 1]])
