"""Batches read, decoded and augmented ahead of the step, in threads.

A batch is known by the samples of its epoch that come before it, so a run that was stopped goes on
with the very next one, also on another number of processes.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from blip_fast.data.batches import stable_seed
from blip_fast.data.samples import BadSample, Sample
from blip_fast.images import Decoded, ImageError, ImageOptions, decode
from blip_fast.images.load import read_bytes
from blip_fast.train.objective import Example
from blip_fast.train.order import Order

__all__ = ["Loader", "Order"]

# Bad samples in a row that one slot takes before the data must be called broken, and how many of
# them are replaced out of shards that are open already.
ATTEMPTS = 100
_NEAR_ATTEMPTS = 20

_AHEAD = 4  # samples read or being read for each thread, and at least two batches

T = TypeVar("T")


class Loader(Generic[T]):
    """The batches of one process.

    Attributes:
        skipped: bad samples so far by status, each replaced by another; those of batches that are
            read ahead are counted already.
        first_skipped: for each status, the message of the first.
    """

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        augment: Callable[[Decoded, int], Tensor],
        image_options: ImageOptions,
        collate: Callable[[Sequence[Example]], T],
        workers: int = 4,
        seed: int = 42,
    ) -> None:
        """Nothing is read yet.

        Args:
            batch_size: samples in a batch of this process; all processes have the same.
            augment: full-size picture and seed to uint8 [3, S, S].
            collate: examples to a batch; called in threads.
            workers: threads.

        Raises:
            ValueError: where a number is out of range.
        """
        if batch_size < 1 or workers < 1:
            raise ValueError(
                f"batch_size is {batch_size} and workers {workers}; both must be at least 1"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must be from 0 to world_size {world_size} - 1")
        self._order, self._seed = order, seed
        self._size, self._rank, self._world = batch_size, rank, world_size
        self._augment, self._options, self._collate = augment, image_options, collate
        self._workers = workers
        self._counting = threading.Lock()
        self.skipped: Counter[str] = Counter()
        self.first_skipped: dict[str, str] = {}

    def steps(self, epoch: int, start: int = 0) -> int:
        """Batches that are left of an epoch after `start` samples, counted over all processes.

        What is left over at the end and fills no batch of all processes is dropped.
        """
        return max(0, self._order.length(epoch) - start) // (self._size * self._world)

    def batches(self, epoch: int, start: int = 0) -> Iterator[T]:
        """The batches of this process, read ahead. Closing the iterator stops its threads.

        Args:
            start: samples of the epoch that all processes together have trained on already.

        Raises:
            ValueError: from the iterator, where `ATTEMPTS` samples in a row are bad.
        """
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self._workers, "loader", _compute_alone)
        opener = _Opener(self._order, epoch)
        ahead = max(2, -(-_AHEAD * self._workers // self._size))
        waiting: deque[Future[T]] = deque()
        try:
            for step in range(self.steps(epoch, start)):
                first = start + (step * self._world + self._rank) * self._size
                opener.reach(first)
                waiting.append(self._submit(pool, epoch, range(first, first + self._size)))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also where the caller stops asking, or a thread has failed
            pool.shutdown(cancel_futures=True)
            opener.close()
            torch.set_num_threads(threads)  # or threads started from now on would have one

    def _submit(self, pool: ThreadPoolExecutor, epoch: int, positions: range) -> Future[T]:
        """Have a batch made; the thread that finishes its last example also collates it."""
        batch: Future[T] = Future()
        examples: list[Example | None] = [None] * len(positions)
        left = Counter(examples=len(positions))
        lock = threading.Lock()

        def make(slot: int) -> None:
            try:
                if batch.done():
                    return  # another of its examples has failed
                examples[slot] = self._example(epoch, positions[slot])
                with lock:
                    left["examples"] -= 1
                    is_last = not left["examples"]
                if is_last:
                    batch.set_result(self._collate([e for e in examples if e is not None]))
            except BaseException as error:
                with lock:
                    if not batch.done():
                        batch.set_exception(error)

        for slot in range(len(positions)):
            pool.submit(make, slot)
        return batch

    def _example(self, epoch: int, position: int) -> Example:
        """The example for a position, or the first good one among its replacements."""
        reasons: Counter[str] = Counter()
        for attempt in range(ATTEMPTS + 1):
            seed = stable_seed(f"{epoch}/{position}/{attempt}", self._seed)
            try:
                sample = self._order.sample(epoch, self._place(epoch, position, attempt))
                return Example(sample, self._pixels(sample, seed), seed)
            except BadSample as error:
                status, reason = error.status, str(error)
            reasons[reason] += 1
            with self._counting:
                self.skipped[status] += 1
                self.first_skipped.setdefault(status, reason)
        commonest = "; ".join(reason for reason, _ in reasons.most_common(3))
        raise ValueError(
            f"epoch {epoch}, position {position}: {ATTEMPTS + 1} samples in a row are bad, so "
            f"the data are: {commonest}"
        )

    def _place(self, epoch: int, position: int, attempt: int) -> int:
        """Where the sample for a position is looked for: a replacement near it, then anywhere."""
        if attempt == 0:
            return position
        near = attempt <= _NEAR_ATTEMPTS
        span = self._order.window_of(epoch, position) if near else range(self._order.length(epoch))
        return span[stable_seed(f"{epoch}/{position}/{attempt}/place", self._seed) % len(span)]

    def _pixels(self, sample: Sample, seed: int) -> Tensor:
        """uint8 [images, 3, S, S]."""
        views = []
        for number, source in enumerate(sample.images):
            try:
                image = decode(read_bytes(source, self._options.max_bytes), self._options)
            except ImageError as error:
                raise BadSample(f"{sample.key}: {error}", error.status) from error
            views.append(self._augment(image, stable_seed(f"image {number}", seed)))
        return torch.stack(views)


class _Opener:
    """Opens the shards of the window after the one that is read, in a thread of its own."""

    def __init__(self, order: Order, epoch: int) -> None:
        self._order, self._epoch = order, epoch
        self._pool = ThreadPoolExecutor(1, "loader-opener")
        self._next = -1  # position where the window begins that is opened

    def reach(self, position: int) -> None:
        """Say that samples from a position on are about to be read."""
        coming = self._order.window_of(self._epoch, position).stop
        if coming == self._next:
            return
        self._next = coming
        if coming < self._order.length(self._epoch):
            for open_shard in self._order.shards_of(self._epoch, coming):
                self._pool.submit(self._open, open_shard, coming)

    def _open(self, open_shard: Callable[[], object], window: int) -> None:
        if window == self._next:  # else the readers are there already, and open what they need
            open_shard()

    def close(self) -> None:
        self._next = -1
        self._pool.shutdown(cancel_futures=True)


def _compute_alone() -> None:
    """Keep torch from starting threads of its own under each of the loader's."""
    torch.set_num_threads(1)
