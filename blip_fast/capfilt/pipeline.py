"""The way of a CapFilt run: pictures through overlapping stages into shards, whole or not there.

    open -> read -> decode -> captioners -> filters -> decide -> write

A batch is some neighbouring pictures of one shard. What is in it depends on the shard alone, so
that a shard that is done again, by whomever, becomes the same bytes.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_fast.capfilt.crew import Crew
from blip_fast.capfilt.finish import (
    FILES,
    fingerprint_of,
    finish,
    refuse_own_source,
    totals_so_far,
)
from blip_fast.capfilt.flow import Clock, CrewStage, Flow, Stage, StageFailed
from blip_fast.capfilt.jobs import Batch, Job, Reader
from blip_fast.capfilt.kept import thumbnail
from blip_fast.capfilt.ledger import Ledger, clear
from blip_fast.capfilt.models import Models
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.rows import Row, committed
from blip_fast.capfilt.summary import CapFiltSummary, ShardStats, snapshot
from blip_fast.capfilt.write import ShardWriter, gallery_places
from blip_fast.data import default_batch_size
from blip_fast.data.web import WebShard, WebSource, open_web
from blip_fast.images import Status
from blip_fast.images.network import passing
from blip_fast.tasks.model import Blip
from blip_fast.train.guard import STOPPED, StopRequest, stop_request

_OPENING = 3600.0  # seconds that fetching one shard may take
_READERS = 16  # threads that wait for a disk or a network
_MOST_DECODERS = 8  # a decoder holds an image at full size
_THUMBNAIL = 224  # pixels of the longer side
_FAILURES = 500  # that a summary lists
_MOST_UNREAD = 2  # shards in a row without a picture that can be read: then the source has gone


def run_capfilt(
    source: Any,
    output: str | Path,
    captioners: Blip | Sequence[Blip],
    filters: Blip | Sequence[Blip],
    options: CapFiltOptions | None = None,
    progress: Callable[[int], object] | None = None,
) -> CapFiltSummary:
    """Caption web pictures, and keep the web and the synthetic texts that match.

    The same call goes on where one was stopped, killed or has failed, and ends with the same
    shards. Several processes may make it at once: they share the work. On SIGTERM the batch is
    finished, an unfinished shard dropped, and the process exits with code 143 (SystemExit).

    Args:
        source: what `blip_fast.data.web.open_web` takes, or what it gave.
        output: a folder; see `blip_fast.capfilt.write` for what goes into it.
        captioners: models of kind "caption" or "pretrain".
        filters: models of kind "retrieval" or "pretrain". A model that is both sees once.
        progress: called with the number of pictures just finished.

    A shard that is not there or may not be read is left undone and named in the summary, and so is
    one that names pictures of which none is there; the others are done. A network or disk that does
    not answer ends the run.

    Raises:
        StageFailed: naming the stage and the pictures where one cannot go on.
        ValueError: where a model lacks a part, the source holds no picture, or the output folder
            belongs to another run.
        OSError: where the source has gone or the output cannot be written.
    """
    options, output = options or CapFiltOptions(), Path(output)
    models = Models(_listed(captioners), _listed(filters), options)
    web = open_web(
        source,
        options.shard_size,
        image_root=options.image_root,
        recursive=options.recursive,
    )
    refuse_own_source(output, web)
    if options.overwrite:
        clear(output, FILES)
    with Ledger(output, fingerprint_of(web, models, options)) as ledger, stop_request() as stop:
        run = _Run(web, output, models, ledger, stop, progress)
        with _quick_collections():
            run.work()
        held = ledger.held_by_others()
        # Another may have found what was away for a moment.
        undone = {n: why for n, why in run.undone.items() if not ledger.is_done(n)}
        if len(undone) == len(web):
            raise _stopping(*next(iter(undone.items())))
        if len(committed(output)) + len(undone) == len(web):
            return finish(output, ledger.scratch, web, models, run.failures, run.done, undone)
    stats = totals_so_far(output, web, models, undone)
    return CapFiltSummary(
        output, stats, run.failures, complete=False, held=held, done=run.done, undone=undone
    )


class _Run:
    """One process's part of a run.

    Attributes:
        done: shards that it committed.
        failures: pictures that could not be read, the first of them.
        undone: shards that are left undone, with the reason.
    """

    def __init__(
        self,
        source: WebSource,
        output: Path,
        models: Models,
        ledger: Ledger,
        stop: StopRequest,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._source, self._output, self._models = source, output, models
        self._ledger, self._stop, self._progress = ledger, stop, progress
        self._options = models.options
        self.done = 0
        self.failures: list[tuple[str, Status, str]] = []
        self.undone: dict[str, str] = {}
        self._unread = 0  # shards, the last ones, none of whose pictures could be read

    def work(self) -> None:
        """Do all shards that nobody has done or is doing.

        Raises:
            SystemExit: with code 143, where SIGTERM has come.
        """
        mine = range(self._options.shard_index, len(self._source), self._options.num_shards)
        opening, sink, stages = self._stages()
        self._clocks = [opening, *_clocks_of(stages), sink]
        self._since, self._before = time.time(), snapshot(self._clocks)
        opener = Crew("opening", 1, _OPENING)
        shards = self._batches(self._ledger.take(mine), opener)
        flow = Flow(shards, opening, stages, [opener])
        writer: _Writing | None = None
        try:
            with closing(flow.run(sink, lambda: self._stop.asked)) as batches:
                for batch in batches:
                    if writer is None:
                        writer = self._begin(batch)
                    self._write(writer, batch)
                    if batch.last:
                        self._commit(writer)
                        writer = None
                    if self._progress is not None:
                        self._progress(len(batch.items))
                    if self._stop.asked:
                        break
            if self._stop.asked:
                raise SystemExit(STOPPED)
        finally:
            if writer is not None:
                writer.files.discard()

    def _stages(self) -> tuple[Clock, Clock, list[Stage | CrewStage]]:
        """Those between the source and the writing; models of one device take turns."""
        models, options = self._models, self._options
        reader = Reader(models.image_options)
        readers = Crew("reading", _READERS, options.patience)
        stages: list[Stage | CrewStage] = [
            CrewStage(Clock("read", "read"), readers, reader.read, reader.settle_read)
        ]
        clock = Clock("decode", "decode")
        if reader.on_device:
            stages.append(Stage([(clock, reader.decode_batch)]))
        else:
            decoders = Crew("decoding", min(_MOST_DECODERS, _processors()), options.patience)
            stages.append(CrewStage(clock, decoders, reader.decode, reader.settle_decode))
        works: list[tuple[Clock, Callable[[Batch], None]]] = []
        roles = (
            ("captioner", models.captioners, models.caption),
            ("filter", models.filters, models.score),
        )
        for role, some, work in roles:
            for number, model in enumerate(some):
                name = role if len(some) == 1 else f"{role} {number + 1}"
                clock = Clock(name, str(model.device))
                if works and works[-1][0].lane != clock.lane:
                    stages.append(Stage(works))
                    works = []
                works.append((clock, _numbered(work, number)))
        stages += [Stage(works), Stage([(Clock("decide", "decide"), models.decide)])]
        return Clock("open", "open"), Clock("write", "write"), stages

    def _batches(self, names: Iterator[str], opener: Crew) -> Generator[Batch, None, None]:
        """The batches of all shards; the next shard is opened, or fetched, ahead of its turn."""
        device = self._models.captioners[0].device.type
        size = self._options.batch_size or default_batch_size(device)
        coming = opener.submit(self._open_next, names)
        while (found := opener.wait(coming)) is not None:
            if isinstance(found, BaseException):
                raise found
            coming = opener.submit(self._open_next, names)
            name, shard = found
            for first in range(0, max(1, len(shard)), size):
                numbers = range(first, min(first + size, len(shard)))
                last = first + size >= len(shard)
                yield Batch(name, shard, [Job(n, shard) for n in numbers], last)

    def _open_next(self, names: Iterator[str]) -> tuple[str, WebShard] | None:
        """The next shard that is to be done and can be opened, open."""
        for name in names:
            try:
                return name, self._source.open(int(name))
            except (OSError, ValueError) as error:
                why = f"shard {name} of {self._source.name} cannot be opened: "
                why += f"{type(error).__name__}: {error}"
                if passing(error):  # so it is with the shards behind it
                    raise _stopping(name, why) from error
                self._source.check()
                self._leave(name, why)
        return None

    def _leave(self, name: str, why: str) -> None:
        self.undone[name] = why
        self._ledger.drop(name)

    def _begin(self, batch: Batch) -> _Writing:
        return _Writing(
            ShardWriter(self._output, self._ledger.scratch, batch.name),
            ShardStats(batch.shard.losses, batch.shard.lost),
            gallery_places(
                int(batch.name), len(self._source), len(batch.shard), self._options.gallery
            ),
        )

    def _write(self, writing: _Writing, batch: Batch) -> None:
        rows = []
        for job in batch.items:
            assert job.row is not None
            if job.number in writing.gallery:
                job.row = _shown(job.row, thumbnail(job, _THUMBNAIL))
            rows.append(job.row)
            if not job.usable:
                writing.error = job.error
                if len(self.failures) < _FAILURES:
                    self.failures.append((job.row.key, job.status, job.error))
        writing.stats.add(rows)
        writing.away = writing.away and all(_is_away(job) for job in batch.items)
        try:
            writing.files.add(batch.items)
        except OSError as error:
            raise _unwritten(batch.name, error) from error

    def _commit(self, writing: _Writing) -> None:
        name = writing.files.name
        if writing.stats.unread:
            self._source.check()
            if writing.away:
                writing.files.discard()
                self._leave(name, f"no picture of shard {name} could be read, as: {writing.error}")
                self._unread += 1
                if self._unread == _MOST_UNREAD:
                    raise _stopping(name, self.undone[name])
                return
        self._unread = 0
        if not self._ledger.holds(name):  # thought dead, and another is at it
            writing.files.discard()
            return
        stats = writing.stats.to_dict(self._since, self._clocks, self._before)
        self._since, self._before = time.time(), snapshot(self._clocks)
        try:
            writing.files.commit(stats)
        except OSError as error:
            raise _unwritten(name, error) from error
        self._ledger.drop(name)
        self.done += 1


@dataclass
class _Writing:
    """A shard on its way to the disk.

    Attributes:
        gallery: numbers of the pictures that the report shows.
        away: whether no picture so far was where the shard says.
        error: of the last picture that could not be read.
    """

    files: ShardWriter
    stats: ShardStats
    gallery: set[int]
    away: bool = True
    error: str = ""


@contextmanager
def _quick_collections() -> Iterator[None]:
    """Leave what is there already out of Python's garbage collections: the half a million objects
    of the libraries cost twice the time of writing a row, and none of them is garbage."""
    if gc.get_freeze_count():  # the caller's own affair
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _listed(models: Blip | Sequence[Blip]) -> Sequence[Blip]:
    if isinstance(models, str):
        raise ValueError(f"{models!r} is no model but a name; give blip_fast.load of it")
    return models if isinstance(models, Sequence) else [models]


def _numbered(work: Callable[[Batch, int], None], number: int) -> Callable[[Batch], None]:
    return lambda batch: work(batch, number)


def _clocks_of(stages: Sequence[Stage | CrewStage]) -> list[Clock]:
    return [
        clock
        for stage in stages
        for clock in (
            [stage.clock] if isinstance(stage, CrewStage) else [clock for clock, _ in stage.works]
        )
    ]


def _shown(row: Row, picture: bytes) -> Row:
    return Row(**{**vars(row), "thumbnail": picture})


def _is_away(job: Job) -> bool:
    """Whether a picture is no file where it should be, and no URL that gives anything."""
    image = None if job.picture is None else job.picture.image
    if job.status is not Status.FAILED_TO_READ:
        return False
    return isinstance(image, str) or (isinstance(image, Path) and not os.path.lexists(image))


def _stopping(name: str, why: str) -> StageFailed:
    return StageFailed(f"{why}. What is done stays, shard {name} is not; the same command goes on")


def _unwritten(name: str, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"shard {name} could not be written ({error.strerror or error}); what is done stays. Make "
        "room where it is needed; the same command goes on",
    )


def _processors() -> int:
    """Those this process is allowed to use, where the system can say."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
