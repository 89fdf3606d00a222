"""A CapFilt run on a Ray cluster: its workers take shards, and write them where all can reach.

Ray Data hands out the shards, starts a worker again that has died, and gives its shard to another.
What is written, and that nothing is lost or there twice, is the affair of `run_capfilt` and its
ledger, as it is without Ray; either goes on where the other was stopped.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blip_fast.capfilt.cluster import LazyModels, ModelSpec
from blip_fast.capfilt.finish import FILES, refuse_own_source
from blip_fast.capfilt.flow import StageFailed
from blip_fast.capfilt.ledger import clear
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.pipeline import run_capfilt
from blip_fast.capfilt.rows import committed
from blip_fast.capfilt.summary import CapFiltSummary
from blip_fast.data.web import WebSource, open_web

LOCAL = "local"

_AGAIN = 5.0  # seconds until a shard that somebody else holds is looked at again
_FAILURES = 500  # that a summary lists
_ANSWER = ("shard", "summary", "error", "count")
_MOST_DEATHS = 3  # of processes at one shard, before it is taken to be the shard that kills them


def run_on_ray(
    source: Any,
    output: str | Path,
    captioners: Sequence[ModelSpec],
    filters: Sequence[ModelSpec],
    options: CapFiltOptions | None = None,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> CapFiltSummary:
    """Do what `run_capfilt` does with the workers of a Ray cluster.

    Args:
        source, output: as of `run_capfilt`; every machine must reach both by these names.
        captioners, filters: as of `blip_fast.capfilt.CapFilter`.
        address: of a cluster, "auto" for the one of this machine, or "local" for a new one of
            this machine alone, which ends with the call. Where Ray is in use, it stays as it is.
        workers: one for each GPU where none are given, or one for each machine without GPUs; the
            processors are shared out among them.
        progress: called with the number of pictures of each shard that is done.

    Raises:
        StageFailed: with a worker's reason for giving up. What is done stays.
        ValueError: where the package ray is missing, or as of `run_capfilt`.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 must work")
    options, output = options or CapFiltOptions(), Path(output).absolute()
    if isinstance(source, (str, Path)) and Path(source).exists():
        source = str(Path(source).absolute())
    web = open_web(
        source, options.shard_size, image_root=options.image_root, recursive=options.recursive
    )
    refuse_own_source(output, web)
    if options.overwrite:
        clear(output, FILES)
        options = replace(options, overwrite=False)
    mine = range(options.shard_index, len(web), options.num_shards)
    done = set(committed(output)) if output.is_dir() else set()
    # Where all is done one shard is asked for all the same: what stands beside them is written.
    names = [shard for shard in mine if f"{shard:05d}" not in done] or list(mine[:1])
    orders = [{"shard": shard, "claims": _claims(output, shard)} for shard in names]
    summaries = []
    with _cluster(address) as ray:
        worker = (source, output, list(captioners), list(filters), options)
        for row in _spread(ray, orders, worker, workers):
            if row["error"]:
                raise StageFailed(f"shard {row['shard']:05d}: {row['error']}")
            summaries.append(pickle.loads(row["summary"]))
            if progress is not None:
                progress(row["count"])
    return _joined(summaries)


class ShardWorker:
    """Does whole shards of a run, one at a time; see `run_on_ray` for its arguments."""

    def __init__(
        self,
        source: Any,
        output: Path,
        captioners: Sequence[ModelSpec],
        filters: Sequence[ModelSpec],
        options: CapFiltOptions,
    ) -> None:
        self._source, self._output, self._options = source, output, options
        self._models = LazyModels(captioners, filters, options)
        self._opened: WebSource | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Do the shards of a batch, where nobody has done them.

        Args:
            batch: `shard`, their numbers, and `claims`, how many lay on each as the run began.

        Returns:
            for each its number, how many pictures were done now, and a pickled summary or the
            reason why there is none.
        """
        answers: list[dict[str, Any]] = []
        for shard, claims in zip(batch["shard"], batch["claims"], strict=True):
            self._count, error, summary = 0, "", None
            try:
                summary = self._do(int(shard), int(claims))
            except Exception as reason:  # in words, for the one who asked; Ray hides what it wraps
                error = f"{type(reason).__name__}: {reason}"
            answer = {"summary": pickle.dumps(summary), "error": error, "count": self._count}
            answers.append({"shard": shard, **answer})
        return {name: np.array([answer[name] for answer in answers], object) for name in _ANSWER}

    def _do(self, shard: int, claims: int) -> CapFiltSummary:
        """Do one shard; where another process is at it, wait and see what becomes of it."""
        deaths = _claims(self._output, shard) - claims
        if deaths > _MOST_DEATHS:
            raise ValueError(
                f"{deaths} processes have died at it; is their memory too small? It is left "
                "undone; the same command goes on"
            )
        if self._opened is None:
            options = self._options
            self._opened = open_web(
                self._source,
                options.shard_size,
                image_root=options.image_root,
                recursive=options.recursive,
            )
        models = self._models.get()
        alone = replace(self._options, shard_index=shard, num_shards=len(self._opened))
        while True:
            summary = run_capfilt(
                self._opened, self._output, models.captioners, models.filters, alone, self._add
            )
            if f"{shard:05d}" not in summary.held:
                return summary
            time.sleep(_AGAIN)

    def _add(self, number: int) -> None:
        self._count += number


def _joined(summaries: Sequence[CapFiltSummary]) -> CapFiltSummary:
    """That of the whole run, which the worker that came last has made, and what all have seen."""
    last = max(summaries, key=lambda summary: (summary.complete, summary.count))
    failures = [failure for summary in summaries for failure in summary.failures]
    undone = {name: why for summary in summaries for name, why in summary.undone.items()}
    done = sum(summary.done for summary in summaries)
    return replace(last, failures=failures[:_FAILURES], done=done, undone=undone)


def _spread(
    ray: Any, orders: list[dict[str, int]], worker: tuple[Any, ...], workers: int | None
) -> Iterator[dict[str, Any]]:
    """What workers of a cluster answer to orders, in the order in which they are done."""
    found = ray.cluster_resources()
    gpus, processors = int(found.get("GPU", 0)), int(found.get("CPU", 1))
    machines = sum(node["Alive"] for node in ray.nodes())
    workers = min(workers or gpus or machines, len(orders))
    dataset = ray.data.from_items(orders, override_num_blocks=len(orders)).map_batches(
        ShardWorker,
        fn_constructor_args=worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=max(1, processors // workers),
        num_gpus=1 if gpus else None,
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise StageFailed(
            f"Ray gave up: {error}. What is done stays; the same command goes on"
        ) from error


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected; let go of again where it was not before."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            "a run on Ray needs the package ray, which cannot be imported "
            f"({error}): pip install 'blip-fast[ray]'"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield ray
    finally:
        context.enable_progress_bars = before
        logger.setLevel(level)
        if ours:
            ray.shutdown()


def _claims(output: Path, shard: int) -> int:
    """How many processes have claimed a shard so far; see `blip_fast.capfilt.ledger`."""
    claims = (output / ".work" / "claims").glob(f"{shard:05d}.*")
    return max((int(claim.suffix[1:]) for claim in claims), default=0)
