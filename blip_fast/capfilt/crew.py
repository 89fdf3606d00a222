"""Workers that read or decode one thing each, and a watch over them: one that hangs is replaced.

A decoder that never returns cannot be stopped from outside; its thread is left behind, and another
takes its place, so that one hostile file costs a row and not the run.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

_log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The work is being taken down."""


class Task:
    """One call, waiting, under way or done."""

    __slots__ = ("work", "item", "started", "thread", "done", "result", "seconds")

    def __init__(self, work: Callable[[Any], Any], item: Any) -> None:
        self.work, self.item = work, item
        self.started: float | None = None
        self.thread = 0  # who is at it
        self.done = False
        self.result: Any = None
        self.seconds = 0.0


class Crew:
    """Threads that do tasks in the order in which they were submitted.

    Args:
        workers: how many.
        limit: seconds that one task may take.
    """

    def __init__(self, name: str, workers: int, limit: float) -> None:
        self.name, self.workers, self.limit = name, workers, limit
        self._tasks: deque[Task] = deque()
        self._came = threading.Condition()
        self._done = threading.Condition()
        self._closed = self._hung = False
        self._awaited: Task | None = None
        for _ in range(workers):
            self._hire()

    def submit(self, work: Callable[[Any], Any], item: Any) -> Task:
        return self.submit_all(work, [item])[0]

    def submit_all(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Task]:
        tasks = [Task(work, item) for item in items]
        with self._came:
            self._tasks.extend(tasks)
            self._came.notify(len(tasks))
        return tasks

    def wait(self, task: Task) -> Any:
        """The result of a task; the exception itself where it raised one.

        A task that takes longer than the limit has a TimeoutError for its result. One thread
        waits at a time.

        Raises:
            Cancelled: where the crew is closed.
        """
        if task.done:
            return task.result
        with self._done:
            self._awaited = task
            while not task.done:
                if self._closed:
                    raise Cancelled
                left = self.limit
                if task.started is not None:
                    left = task.started + self.limit - time.perf_counter()
                    if left <= 0:
                        return self._give_up(task)
                self._done.wait(left)
            return task.result

    def close(self) -> None:
        """Let the workers go; those that hang stay behind and do not hold up the program's end."""
        with self._came:
            self._closed = True
            self._tasks.clear()
            self._came.notify_all()
        with self._done:
            self._done.notify_all()

    def _give_up(self, task: Task) -> TimeoutError:
        frame = sys._current_frames().get(task.thread)
        where = "".join(traceback.format_stack(frame)) if frame is not None else "nowhere\n"
        level = logging.DEBUG if self._hung else logging.WARNING  # once; each has its row
        _log.log(level, "%s hangs at %s; it stands here:\n%s", self.name, task.item, where.rstrip())
        self._hung = True
        task.seconds = self.limit
        task.result = TimeoutError(f"{self.name} did not end within {self.limit:g} seconds")
        task.done = True
        self._hire()
        return task.result

    def _hire(self) -> None:
        threading.Thread(target=self._work, name=f"capfilt {self.name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._came:
                while not self._tasks and not self._closed:
                    self._came.wait()
                if self._closed:
                    return
                task = self._tasks.popleft()
            task.thread = threading.get_ident()
            task.started = started = time.perf_counter()
            try:
                result = task.work(task.item)
            except BaseException as error:
                result = error
            with self._done:
                if task.done:  # given up: another has this place now
                    return
                task.seconds = time.perf_counter() - started
                task.result = result
                task.done = True  # last: who waits looks at it without the lock
                if task is self._awaited:  # waking for every other would cost more than the work
                    self._done.notify_all()
