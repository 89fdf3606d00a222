"""A recorder that holds a step to the rules of a CUDA graph, on any device.

What is recorded is the list of operators with the very tensors that they read and wrote. Replaying
runs each again and puts its result where it was: as a graph does, it knows nothing but places, and
nothing of Python. An operator that would make the host wait for the device, or whose result has a
shape that depends on data, is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "_unique",
         "unique", "equal", "bincount", "repeat_interleave.Tensor", "_to_copy")  # fmt: skip


class Refused(RuntimeError):
    """The step cannot be recorded."""


class Tape(TorchDispatchMode):
    """Records every operator that runs within.

    Attributes:
        calls: operator, arguments and results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        stem = name.split(".")[0]
        moves = stem == "_to_copy" and "device" in kwargs
        if name in WAITS or (stem in WAITS and (stem != "_to_copy" or moves)):
            raise Refused(f"{name} waits for the device or has a shape that depends on data")
        if stem in ("index", "index_put", "index_put_"):
            for index in args[1]:
                if index is not None and index.dtype == torch.bool:
                    raise Refused(f"{name} by a mask has a shape that depends on data")
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, tensors(result)))
        return result

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = tensors(func(*args, **kwargs))
            for kept, new in zip(results, again, strict=True):
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class Recorder:
    """Makes a tape of a step, as `torch.cuda.graph` would.

    Attributes:
        tapes: of the steps that were recorded.
        replays: how often one was replayed.
    """

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.replays = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Unlike a graph's, this recording does the work; so the first replay does nothing."""
        tape = Tape()
        with tape:
            work()
        self.tapes.append(tape)
        done = False

        def replay() -> None:
            nonlocal done
            if done:
                tape.replay()
                self.replays += 1
            done = True

        return replay


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
