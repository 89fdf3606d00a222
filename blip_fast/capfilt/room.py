"""As many pictures at once as a device has room for, learned where its memory runs out.

A picture that does not fit alone costs its own row and nobody else's. Where one after the other
does not fit, it is the device that is full, by another process perhaps: then a run must not go on
to write a row without scores for every picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TypeVar

import torch

from blip_fast.capfilt.jobs import Job
from blip_fast.decoding.limit import attempt
from blip_fast.images.status import one_line
from blip_fast.tasks.model import Blip

T = TypeVar("T")

_IN_A_ROW = 8  # lone pictures without room, after which it is no picture's fault


class Room:
    """What was learned of each model's device."""

    def __init__(self) -> None:
        self._too_many: dict[int, int] = {}  # pictures at once that a model has no room for
        self._in_a_row: dict[int, int] = {}

    def through(
        self, model: Blip, jobs: Sequence[Job], work: Callable[[Sequence[Job]], Sequence[T]]
    ) -> list[tuple[Job, T | None, str]]:
        """Work through pictures in order, all at once or in halves, quarters and so on.

        Args:
            work: makes of some pictures a result each.

        Returns:
            each picture with its result and an empty string, or with None and why.

        Raises:
            torch.OutOfMemoryError: where too many pictures in a row do not fit alone.
        """
        reason = ""
        if len(jobs) == 1 or len(jobs) < self._too_many.get(id(model), len(jobs) + 1):
            done, reason = attempt(lambda: work(jobs))
            if done is not None:
                self._in_a_row[id(model)] = 0
                return list(zip(jobs, done, repeat("")))
            if len(jobs) == 1:
                self._count(model, reason)
                return [(jobs[0], None, one_line(reason))]
        half = len(jobs) // 2
        parts = [self.through(model, some, work) for some in (jobs[:half], jobs[half:])]
        found = parts[0] + parts[1]
        # Of what one picture makes too much, nothing is learned about the others.
        if reason and not any(why for _, _, why in found):
            self._too_many[id(model)] = min(len(jobs), self._too_many.get(id(model), len(jobs)))
        return found

    def _count(self, model: Blip, reason: str) -> None:
        number = self._in_a_row[id(model)] = self._in_a_row.get(id(model), 0) + 1
        if number == _IN_A_ROW:
            raise torch.OutOfMemoryError(
                f"{number} pictures one after the other did not fit alone in the memory of "
                f"{model.device}: {one_line(reason)}. Make room there; the same command goes on"
            )
