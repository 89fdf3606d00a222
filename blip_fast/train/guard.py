"""What stands around a run: one run to a folder, and a request to stop that waits for a step."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from blip_fast.train.processes import rank

STOPPED = 128 + signal.SIGTERM  # exit code of a run that was told to stop: 143


class StopRequest:
    """Whether SIGTERM has come.

    Attributes:
        asked: becomes True and stays so.
    """

    asked = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block SIGTERM is noted, not obeyed; only a program's main thread can have it."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request._take)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Hold a run's folder, which is made, against other runs.

    The system lets go of it when the process ends, however it ends.

    Raises:
        ValueError: where another run holds it.
    """
    output.mkdir(parents=True, exist_ok=True)
    if rank() != 0:
        yield
        return
    with (output / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another run is writing to {output}; wait for it, or take another folder"
            ) from None
        yield
