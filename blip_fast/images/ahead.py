"""Work done in threads, a little ahead of the one who asks for it, and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run_ahead(jobs: Iterable[Callable[[], T]], workers: int, ahead: int, name: str) -> Iterator[T]:
    """Run `jobs` in threads and give their results in order.

    Nothing is taken from `jobs` before the first result is asked for. What a job raises is raised
    in its place.

    Args:
        ahead: jobs done or being done beside the one asked for.
        name: what the threads are called.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops asking
        pool.shutdown(cancel_futures=True)
