"""One run to a folder, and a request to stop that is noted."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from blip_fast.train.guard import StopRequest, alone, stop_request


def test_one_run_to_a_folder(tmp_path: Path) -> None:
    output = tmp_path / "new" / "run"
    with alone(output), pytest.raises(ValueError, match="another run is writing to"):
        with alone(output):
            pass
    with alone(output):
        pass


def test_request_is_noted_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) == before
    with stop_request() as again:
        assert not again.asked


def test_other_threads_leave_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), list[StopRequest]()

    def work() -> None:
        with stop_request() as stop:
            seen.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not seen[0].asked and signal.getsignal(signal.SIGTERM) == before
