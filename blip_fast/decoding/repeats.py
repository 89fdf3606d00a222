"""Texts that go round in circles."""

from __future__ import annotations

from collections.abc import Sequence

# How often a stretch of tokens stands in a row before it counts: "bald bald bald", "red and red
# and red and", but "a dog on a dog on" already. A word is at times said twice on purpose.
_SHORT, _TIMES_SHORT, _TIMES_LONG = 2, 3, 2


def is_degenerate(tokens: Sequence[int]) -> bool:
    """Whether a stretch of tokens is written again at once: one or two tokens three times in a
    row, three or more tokens twice.

    A stretch that comes back later, after something else, is no fault: "a cup and a plate".
    """
    for width in range(1, len(tokens) // 2 + 1):
        times = _TIMES_SHORT if width <= _SHORT else _TIMES_LONG
        needed = width * (times - 1)  # so many tokens in a row equal those `width` before them
        run = 0
        for now, before in zip(tokens[width:], tokens, strict=False):
            run = run + 1 if now == before else 0
            if run == needed:
                return True
    return False
