"""A step that is the same work in the same places every time, recorded once and replayed.

A decoding step is some three hundred small kernels. Launched one by one from Python they take
longer than the GPU takes to run them; as one CUDA graph they are one launch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch

from blip_fast.decoding.limit import is_out_of_memory

Work: TypeAlias = Callable[[], None]

# Makes of some work, without doing it, what does it: on the same tensors, and all of it.
Recorder: TypeAlias = Callable[[Work], Work]


class Replay:
    """Work that is recorded at its second call and replayed from then on.

    The first call runs it as it is: kernels are compiled and libraries begin in it, which cannot
    be recorded.

    Args:
        recorder: none where work is run as it is every time.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._warm = False
        self._replay: Work | None = None

    def __call__(self, work: Work) -> None:
        """Do the work.

        Args:
            work: the same at every call. It reads and writes tensors that stay where they are,
                decides nothing on the host and does not wait for the device.
        """
        if self._warm and self._recorder is not None:
            self._replay, self._recorder = _recorded(work, self._recorder), None
        self._warm = True
        (self._replay or work)()


def _recorded(work: Work, recorder: Recorder) -> Work | None:
    """What replays the work; nothing, with a warning, where it cannot be recorded."""
    try:
        return recorder(work)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        warnings.warn(f"steps are launched one by one, slower: {error}", stacklevel=2)
        return None


def recorder_of(device: torch.device) -> Recorder | None:
    """CUDA's graphs; none on other devices."""
    if device.type != "cuda":
        return None

    def record(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # The outer context puts the stream back where recording fails, which the inner does not.
        with torch.cuda.stream(torch.cuda.current_stream(device)):
            stream = torch.cuda.Stream(device)
            # Only this thread's calls are held to what can be recorded: others read pictures.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                work()
        return graph.replay

    return record
