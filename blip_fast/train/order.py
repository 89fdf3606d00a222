"""The order of an epoch's samples, found by number: the same in every process and every run.

Sources are cut into blocks of neighbours. The blocks of each source are shuffled and spread evenly
over the epoch, so that human-annotated and web samples come in the same proportion all the time. A
few blocks that follow each other, a window, are then shuffled sample by sample. Every sample comes
once an epoch, and only the shards of a few windows are open.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np

from blip_fast.data.batches import stable_seed
from blip_fast.data.samples import BadSample, Sample, Shard, Source

# As many samples as img2dataset puts into one shard by default, so that one of its shards is one
# block, and a manifest is mixed with them in parts of the same size.
BLOCK = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class _Epoch:
    """Blocks in the order of an epoch, and the windows they are cut into.

    Attributes:
        sources: of this epoch.
        blocks: [B, 4] int64: number of the source, shard, first sample, samples.
        windows: [W + 1] int64; window w is blocks[windows[w] : windows[w + 1]].
        starts: [W + 1] int64, the position of each window's first sample; the last is the length.
    """

    sources: Sequence[Source]
    blocks: np.ndarray
    windows: np.ndarray
    starts: np.ndarray

    def window_of(self, position: int) -> int:
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def shards(self, window: int) -> list[tuple[int, int]]:
        """Numbers of source and shard that a window takes samples from."""
        part = self.blocks[self.windows[window] : self.windows[window + 1], :2]
        return [(int(source), int(shard)) for source, shard in np.unique(part, axis=0)]


class Order:
    """Samples of every epoch in a seeded order. All methods are safe in several threads."""

    def __init__(
        self,
        fixed: Sequence[Source],
        rotating: Sequence[Source] = (),
        rotating_per_epoch: int = 1,
        seed: int = 42,
        window: int = 32,
        block: int = BLOCK,
        together: int = 1,
    ) -> None:
        """Nothing is read yet.

        Args:
            fixed: in every epoch.
            rotating: sorted by name, of which epoch e takes `rotating_per_epoch` from number
                e * rotating_per_epoch on, in a ring, as BLIP rotates LAION.
            window: blocks whose samples are mixed. The shards of four windows stay open: one that
                threads still read, the one that has begun, the next, which is opened ahead, and
                one before, because what was opened ahead has waited longer than that.
            block: most samples of a block.
            together: samples of a shard that stay neighbours: twos, threes and so on, counted from
                its first. Blocks and shards should hold a multiple of it.

        Raises:
            ValueError: where a number is less than 1, or there is no source.
        """
        for name, value in (
            ("rotating_per_epoch", rotating_per_epoch),
            ("window", window),
            ("block", block),
            ("together", together),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not fixed and not rotating:
            raise ValueError("there are no sources; name at least one")
        self._fixed = list(fixed)
        self._rotating = sorted(rotating, key=lambda source: source.name)
        self._per_epoch = min(rotating_per_epoch, len(self._rotating))
        self._seed, self._window, self._block = seed, window, block
        self._together = together
        self._epoch = _once_per_argument(self._plan, 2)
        self._mixed = _once_per_argument(self._mix, 4)
        self._shards = _Kept(4 * window)

    def length(self, epoch: int) -> int:
        """Samples of an epoch, bad ones among them."""
        return int(self._epoch(epoch).starts[-1])

    def sample(self, epoch: int, position: int) -> Sample:
        """Read the sample that comes at a position.

        Raises:
            BadSample: where it cannot be read, or its whole shard cannot.
            IndexError: where the epoch is shorter.
        """
        plan = self._epoch(epoch)
        if not 0 <= position < plan.starts[-1]:
            raise IndexError(f"position {position} of {plan.starts[-1]} in epoch {epoch}")
        window = plan.window_of(position)
        place = self._mixed((epoch, window))[position - plan.starts[window]]
        first, last = plan.windows[window], plan.windows[window + 1]
        ends = np.cumsum(plan.blocks[first:last, 3])
        block = int(np.searchsorted(ends, place, side="right"))
        source, shard, begin, count = plan.blocks[first + block].tolist()
        number = begin + int(place) - int(ends[block]) + count
        return self._shard(plan.sources[source], shard)[number]

    def window_of(self, epoch: int, position: int) -> range:
        """The positions that are mixed with one another; a sample of these needs no new shard."""
        plan = self._epoch(epoch)
        window = plan.window_of(position)
        return range(int(plan.starts[window]), int(plan.starts[window + 1]))

    def shards_of(self, epoch: int, position: int) -> list[Callable[[], object]]:
        """What opens each of the shards that the window around a position needs."""
        plan = self._epoch(epoch)
        return [
            partial(self._shard, plan.sources[source], shard)
            for source, shard in plan.shards(plan.window_of(position))
        ]

    def _shard(self, source: Source, shard: int) -> Shard:
        opened = self._shards.get((id(source), shard), lambda: _open(source, shard))
        if isinstance(opened, BadSample):
            raise opened
        return opened

    def _plan(self, epoch: int) -> _Epoch:
        count = self._per_epoch
        ring = [(epoch * count + i) % len(self._rotating) for i in range(count)]
        sources = [*self._fixed, *(self._rotating[i] for i in ring)]
        blocks = np.array(
            [
                (number, shard, first, min(self._block, samples - first))
                for number, source in enumerate(sources)
                for shard, samples in enumerate(source.counts)
                for first in range(0, samples, self._block)
            ],
            dtype=np.int64,
        ).reshape(-1, 4)
        if not len(blocks):
            names = ", ".join(source.name for source in sources)
            raise ValueError(f"epoch {epoch} has no samples; its sources are {names}")
        blocks = blocks[_spread(blocks[:, 0], _random(self._seed, "blocks", epoch))]
        number = -(-len(blocks) // self._window)  # of windows, all about equally long
        windows = np.arange(number + 1) * len(blocks) // number
        ends = np.concatenate([[0], np.cumsum(blocks[:, 3])])
        return _Epoch(sources, blocks, windows, ends[windows])

    def _mix(self, epoch_and_window: tuple[int, int]) -> np.ndarray:
        """Of each position in a window, the place of its sample in the window's blocks."""
        epoch, window = epoch_and_window
        starts = self._epoch(epoch).starts
        random = _random(self._seed, "samples", epoch, window)
        number = int(starts[window + 1] - starts[window])
        firsts = random.permutation(-(-number // self._together)) * self._together
        places = (firsts[:, None] + np.arange(self._together)).ravel()
        return places[places < number]


class _Kept:
    """Shards that stay open while they are among the last used. Each is opened by one thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Future] = OrderedDict()

    def get(self, key: tuple[int, int], make: Callable[[], T]) -> T:
        with self._lock:
            future = self._kept.get(key)
            owner = future is None
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)  # closed when its last reader lets go of it
        if owner:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
        return future.result()


def _open(source: Source, shard: int) -> Shard | BadSample:
    """An open shard, or what each of its samples raises: one lost shard does not end a run."""
    try:
        return source.open(shard)
    except (OSError, ValueError) as error:
        return BadSample(f"{source.name}, shard {shard}: {type(error).__name__}: {error}")


def _spread(sources: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """An order of blocks in which those of each source are shuffled and evenly spaced.

    Args:
        sources: [B] the source of each block.
    """
    when = np.empty(len(sources))  # from 0, the epoch's beginning, to 1, its end
    for source in np.unique(sources):
        own = np.flatnonzero(sources == source)
        when[own] = (random.permutation(len(own)) + random.random_sample(len(own))) / len(own)
    return np.argsort(when, kind="stable")


def _once_per_argument(function: Callable[..., T], most: int) -> Callable[..., T]:
    """Remember the last results, and never work out one in two threads at a time."""
    lock, cached = threading.Lock(), lru_cache(most)(function)

    def locked(argument: object) -> T:
        with lock:
            return cached(argument)

    return locked


def _random(seed: int, *name: object) -> np.random.RandomState:
    """A generator whose numbers are the same in all versions of numpy, which no newer one is."""
    number = stable_seed("/".join(map(str, name)), seed)
    return np.random.RandomState([number & 0xFFFFFFFF, number >> 32])
