"""Images on their way to the slots: read ahead, seen a few at a time, held until their texts ended.

Memories are large (42 MB an image for a base model in fp32), so there are places for a fixed
number of them, and the memory of an image whose texts have ended is written over by another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor

from blip_fast.decoding.limit import Limit, attempt
from blip_fast.decoding.slots import Request
from blip_fast.images import Picture, Status, stack
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference

# Images that are seen before a slot is free for them, as a share of the slots.
_AHEAD = 0.25


class ImageStream:
    """A source of requests, one for each picture that can be read; see `decoding.engine.Source`.

    Args:
        request: what to write for the picture at a place whose memory lies in a row.
        slots: requests that are alive at once.
        most: pictures seen at once.
        total: pictures in all.

    Attributes:
        failures: by place, the pictures that have no memory, and why; its reader empties it.
    """

    key_lengths = None

    def __init__(
        self,
        model: MED,
        pictures: Iterable[Picture],
        request: Callable[[int, int], Request],
        slots: int,
        most: int,
        total: int,
    ) -> None:
        ahead = max(1, min(most, int(_AHEAD * slots)))
        self.failures: dict[int, tuple[Status, str]] = {}
        self._model, self._request = model, request
        self._unseen = deque[tuple[int, Picture]]()
        self._pictures = enumerate(pictures)
        self._ready = deque[Request]()
        self._limit = Limit(model, "images", max(1, min(most, total)))
        self._rows = max(1, min(total, slots + ahead))
        self._pairs: Tensor | None = None
        self._vacant: list[int] = []
        self._alone = False  # the next picture did not fit beside what is alive

    @property
    def pairs(self) -> Tensor:
        assert self._pairs is not None  # made with the first request
        return self._pairs

    def take(self, number: int, idle: bool) -> list[Request]:
        while not self._ready and self._see_some(idle):
            pass
        return [self._ready.popleft() for _ in range(min(number, len(self._ready)))]

    def release(self, request: Request) -> None:
        self._vacant.append(request.memory)

    def _see_some(self, idle: bool) -> bool:
        """See the next pictures, or learn that they do not fit; False where neither can be now."""
        if self._alone and not idle:
            return False
        batch = self._read()
        if not batch:
            return False
        _, reason = attempt(lambda: self._see(batch))
        if not reason:
            self._alone = False
            return True
        self._unseen.extendleft(reversed(batch))
        if len(batch) > 1:
            self._limit.halve(len(batch))
            return True
        if not idle:
            self._alone = True
            return False
        place, picture = self._unseen.popleft()
        self.failures[place] = Status.TOO_LARGE, f"{picture.name} alone: {reason}"
        self._limit.forgive()
        self._alone = False
        return True

    def _read(self) -> list[tuple[int, Picture]]:
        """The next readable pictures, as many as may be seen at once and have places."""
        room = len(self._vacant) if self._pairs is not None else self._rows
        number = 1 if self._alone else min(self._limit.now, room)
        batch = [self._unseen.popleft() for _ in range(min(number, len(self._unseen)))]
        while len(batch) < number and (some := list(islice(self._pictures, number - len(batch)))):
            for place, picture in some:
                if picture.pixels is None:
                    self.failures[place] = picture.status, picture.error
                else:
                    batch.append((place, picture))
        return batch

    def _see(self, batch: list[tuple[int, Picture]]) -> None:
        pixels = stack([picture for _, picture in batch]).to(self._model.device)
        with inference(self._model.device):
            self._make_room(pixels.shape[-1])
            if len(batch) > len(self._vacant):
                raise MemoryError(f"there is room for the memories of {self._rows} images only")
            rows = self._vacant[: len(batch)]
            self._model.see_into(pixels, self.pairs, self._places(rows))
        del self._vacant[: len(batch)]
        self._ready.extend(
            self._request(place, row) for (place, _), row in zip(batch, rows, strict=True)
        )

    def _places(self, rows: list[int]) -> Tensor | slice:
        """Rows as an index: a slice where they lie side by side, which copies a third faster."""
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return torch.tensor(rows, device=self._model.device)

    def _make_room(self, size: int) -> None:
        """Places for memories, half as many for as long as they do not fit."""
        while self._pairs is None:
            pairs, reason = attempt(lambda: self._model.room_for(self._rows, size))
            if reason and self._rows == 1:
                raise MemoryError(reason)
            if reason:
                self._rows //= 2
            else:
                self._pairs, self._vacant = pairs, list(range(self._rows))
