"""Stages that overlap: each works in a thread of its own, a bounded queue before it.

What is slow is kept busy, what is fast waits, and never is there more in memory than the queues
hold. Each stage measures how long it worked, waited for work, and waited to hand it on, so that a
run can say which of them holds it up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from blip_fast.capfilt.crew import Cancelled, Crew, Task

T = TypeVar("T")

_AHEAD = 2  # batches in each queue
_DEEP = 3  # batches under way in a crew, so that it never stands still between two of them


class StageFailed(ValueError):
    """A stage cannot go on; the message says which, where and why."""


@dataclass
class Clock:
    """What a stage has done so far.

    Attributes:
        lane: stages of one lane take turns in one thread.
        images: that have passed.
        busy: seconds at work; of a crew, by the number of its workers.
        waited: seconds without anything to work on.
        blocked: seconds until the next stage took what was done.
    """

    name: str
    lane: str
    images: int = 0
    busy: float = 0.0
    waited: float = 0.0
    blocked: float = 0.0


class Channel(Generic[T]):
    """A queue of limited length that can be closed from both ends."""

    def __init__(self, size: int = _AHEAD) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._changed = threading.Condition()
        self._cancelled = self._ended = False

    def put(self, item: T) -> None:
        """Wait until there is room.

        Raises:
            Cancelled: where the flow is being taken down.
        """
        with self._changed:
            while len(self._items) >= self._size and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def get(self, unless: Callable[[], bool] | None = None) -> T | None:
        """The next one, waiting for it; None at the end.

        Args:
            unless: looked at twice a second: whether not to wait any longer.
        """
        with self._changed:
            while not (self._items or self._ended or self._cancelled):
                self._changed.wait(None if unless is None else 0.5)
                if unless is not None and unless():
                    return None
            if self._cancelled:
                raise Cancelled
            return self._take()

    def ready(self) -> bool:
        """Whether `get` would not wait."""
        with self._changed:
            return bool(self._items) or self._ended or self._cancelled

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()

    def _take(self) -> T | None:
        if not self._items:
            return None
        item = self._items.popleft()
        self._changed.notify_all()
        return item


@dataclass(frozen=True)
class Stage:
    """Something done to a whole batch.

    Attributes:
        works: for each clock of the lane, in order, what is done.
    """

    works: Sequence[tuple[Clock, Callable[[Any], None]]]


@dataclass(frozen=True)
class CrewStage:
    """Something done to each item of a batch, by several workers.

    Attributes:
        work: from an item to a result.
        settle: takes an item and its result, or the exception; in the stage's own thread.
    """

    clock: Clock
    crew: Crew
    work: Callable[[Any], Any]
    settle: Callable[[Any, Any], None]


class Flow:
    """A source of batches and the stages that they pass, in order.

    A batch has `items`, a list, and says in `str()` what it is.
    """

    def __init__(
        self,
        batches: Generator[Any, None, None],
        opening: Clock,
        stages: Sequence[Stage | CrewStage],
        helpers: Sequence[Crew] = (),
    ) -> None:
        """
        Args:
            batches: taken in a thread of its own.
            opening: its clock.
            helpers: crews that `batches` uses, closed with the others.
        """
        self._channels: list[Channel[Any]] = [Channel() for _ in range(len(stages) + 1)]
        crews = [stage.crew for stage in stages if isinstance(stage, CrewStage)]
        self._crews = [*helpers, *crews]
        self._failure: BaseException | None = None
        self._threads = [self._thread("open", self._feed, batches, opening)]
        for stage, before, behind in zip(
            stages, self._channels[:-1], self._channels[1:], strict=True
        ):
            if isinstance(stage, Stage):
                name = stage.works[0][0].lane
                self._threads.append(self._thread(name, self._pass_on, stage, before, behind))
            else:
                name = stage.clock.name
                self._threads.append(self._thread(name, self._hand_out, stage, before, behind))

    def run(
        self, sink: Clock, stopped: Callable[[], bool] | None = None
    ) -> Generator[Any, None, None]:
        """Start, and give the batches that have passed all stages; what the caller does with them
        is the last stage. Threads end with the iterator, when each has finished its batch.

        Args:
            stopped: whether to end early, looked at while there is nothing to give.

        Raises:
            StageFailed: where a stage raised something; an error of the source as it is.
        """
        for thread in self._threads:
            thread.start()
        try:
            while True:
                started = time.perf_counter()
                batch = self._last(stopped)
                sink.waited += time.perf_counter() - started
                if batch is None:
                    return
                started = time.perf_counter()
                sink.images += len(batch.items)
                yield batch
                sink.busy += time.perf_counter() - started
        finally:
            self._cancel()
            for crew in self._crews:
                crew.close()
            for thread in self._threads:
                thread.join()

    def _last(self, stopped: Callable[[], bool] | None) -> Any:
        try:
            batch = self._channels[-1].get(stopped)
        except Cancelled:
            batch = None
        if batch is None and self._failure is not None:
            raise self._failure
        return batch

    def _feed(self, batches: Generator[Any, None, None], clock: Clock) -> None:
        with closing(batches):
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                clock.busy += time.perf_counter() - started
                if batch is None:
                    self._channels[0].end()
                    return
                clock.images += len(batch.items)
                _timed_put(self._channels[0], batch, clock)

    def _pass_on(self, stage: Stage, before: Channel[Any], behind: Channel[Any]) -> None:
        first, last = stage.works[0][0], stage.works[-1][0]
        while (batch := _timed_get(before, first)) is not None:
            for clock, work in stage.works:
                started = time.perf_counter()
                try:
                    work(batch)
                except Exception as error:
                    raise _failed(clock.name, batch, error) from error
                clock.busy += time.perf_counter() - started
                clock.images += len(batch.items)
            _timed_put(behind, batch, last)
        behind.end()

    def _hand_out(self, stage: CrewStage, before: Channel[Any], behind: Channel[Any]) -> None:
        clock, crew = stage.clock, stage.crew
        pending: deque[tuple[Any, list[Task]]] = deque()
        ended = False
        while pending or not ended:
            if not ended and len(pending) < _DEEP and (not pending or before.ready()):
                batch = _timed_get(before, clock)
                if batch is None:
                    ended = True
                else:
                    pending.append((batch, crew.submit_all(stage.work, batch.items)))
                continue
            batch, tasks = pending.popleft()
            for item, task in zip(batch.items, tasks, strict=True):
                try:
                    stage.settle(item, crew.wait(task))
                except Exception as error:
                    raise _failed(clock.name, batch, error) from error
                clock.busy += task.seconds / crew.workers
            clock.images += len(tasks)
            _timed_put(behind, batch, clock)
        behind.end()

    def _thread(self, name: str, work: Callable[..., None], *args: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*args)
            except Cancelled:
                pass
            except BaseException as error:
                self._failure = self._failure or error
                self._cancel()

        return threading.Thread(target=guarded, name=f"capfilt {name}", daemon=True)

    def _cancel(self) -> None:
        for channel in self._channels:
            channel.cancel()


def _timed_get(channel: Channel[Any], clock: Clock) -> Any:
    started = time.perf_counter()
    batch = channel.get()
    clock.waited += time.perf_counter() - started
    return batch


def _timed_put(channel: Channel[Any], batch: Any, clock: Clock) -> None:
    started = time.perf_counter()
    channel.put(batch)
    clock.blocked += time.perf_counter() - started


def _failed(name: str, batch: Any, error: Exception) -> StageFailed:
    return StageFailed(f"the stage {name!r} failed at {batch}: {type(error).__name__}: {error}")


def slowest(clocks: Sequence[Clock]) -> str:
    """The stage that holds the others up: of the lane that worked longest, its longest part."""
    lanes: dict[str, float] = {}
    for clock in clocks:
        lanes[clock.lane] = lanes.get(clock.lane, 0.0) + clock.busy
    lane = max(lanes, key=lambda name: lanes[name])
    return max((c for c in clocks if c.lane == lane), key=lambda clock: clock.busy).name
