"""How much fits at once, learned where memory runs out.

Nobody knows beforehand what fits on a device that others use too. So work begins with what should
fit; where memory runs out, half as much is tried, and what was learned holds for the model's later
calls. What does not fit alone is the fault of one sample, not of the number.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

T = TypeVar("T")
R = TypeVar("R")

# For each model, by what is counted, the number that fitted after a larger one had not.
_learned: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()

_WORDS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is at an end: torch has no one type for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


class Limit:
    """How many of something may be held or computed at once.

    Args:
        what: is counted, a name under which the model's later calls find what was learned.
        start: at most so many, at least 1.

    Attributes:
        now: at most so many at present.
    """

    def __init__(self, model: nn.Module, what: str, start: int) -> None:
        self._learned = _learned.setdefault(model, {})
        self._what, self._start = what, start
        self.now = min(start, self._learned.get(what, start))

    def halve(self, number: int) -> None:
        """So many were too many; half of them may fit."""
        self.now = self._learned[self._what] = max(1, min(number, self.now) // 2)

    def forgive(self) -> None:
        """One alone was too many: that was its own fault, and the number is not to blame."""
        self._learned.pop(self._what, None)
        self.now = self._start


def default_budget(device: torch.device) -> int:
    """Bytes of memories and caches that may be held at once, where nothing else is said."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return 512 << 20


def attempt(work: Callable[[], R]) -> tuple[R | None, str]:
    """Do some work; where memory runs out, give back None, what the error said, and the memory.

    Returns:
        the result and an empty string, or None and the reason.
    """
    try:
        return work(), ""
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    # The traceback, which held the tensors of the attempt, is gone by now.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, reason


def in_parts(
    work: Callable[[Sequence[T]], R], items: Sequence[T], limit: Limit
) -> Iterator[tuple[Sequence[T], R | None, str]]:
    """Work through items in order, as many at once as fit.

    Yields:
        some items, what `work` made of them, and an empty string; or one item that does not fit
        alone, None, and why.
    """
    start = 0
    while start < len(items):
        part = items[start : start + limit.now]
        result, reason = attempt(partial(work, part))
        if reason and len(part) > 1:
            limit.halve(len(part))
            continue
        if reason:
            limit.forgive()
        yield part, result, reason
        result = None  # or it would be held while the next is made
        start += len(part)
