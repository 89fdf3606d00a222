"""The loop of CapFilt: pictures in batches, each seen once by each model, to rows and files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blip_fast.capfilt.decide import can_be_scored, mark_empty, with_scores
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.rows import Candidate, Row
from blip_fast.capfilt.score import are_cut, score_texts
from blip_fast.capfilt.summary import CapFiltSummary, model_facts, summarise
from blip_fast.capfilt.write import prepare_folder, write_run
from blip_fast.data import (
    Record,
    chunks,
    default_batch_size,
    displayable,
    read_folder,
    stable_seed,
)
from blip_fast.images import Picture, Status, read_pictures, stack
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.captions import Generated
from blip_fast.tasks.model import Blip


@dataclass(frozen=True)
class _Item:
    """A picture of the source, as the captioner and as the filter want it."""

    record: Record
    captioned: Picture
    filtered: Picture

    @property
    def failure(self) -> Picture | None:
        pictures = (self.captioned, self.filtered)
        return next((picture for picture in pictures if picture.pixels is None), None)


def run_capfilt(
    source: str | Path,
    output: str | Path,
    captioner: Blip,
    filter_: Blip,
    options: CapFiltOptions | None = None,
    progress: Callable[[int], object] | None = None,
) -> CapFiltSummary:
    """Caption the pictures of a folder, and keep the web and the synthetic texts that match.

    Where captioner and filter are one object, each picture is seen once for both.

    Args:
        source: a folder of pictures with sidecar texts.
        output: a folder; see `blip_fast.capfilt.write` for what goes into it.
        captioner: a model of kind "caption" or "pretrain".
        filter_: a model of kind "retrieval" or "pretrain".
        progress: called with the number of pictures just finished.

    Raises:
        ValueError: where a model lacks a part, the source holds no picture, or the output folder
            holds a finished run.
    """
    options = options or CapFiltOptions()
    source, output = Path(source), Path(output)
    _check_models(captioner, filter_)
    records = list(read_folder(source, options.recursive))
    if not records:
        raise ValueError(f"there are no pictures in {displayable(source)}")
    prepare_folder(output, options.overwrite)

    started = time.time()
    size = options.batch_size or default_batch_size(captioner.device.type)
    rows: list[Row] = []
    for batch in chunks(_read(records, captioner, filter_), size):
        rows += _finish(batch, len(rows), captioner, filter_, options)
        if progress is not None:
            progress(len(batch))
    settings = {"source": displayable(source.resolve()), **options.to_dict()}
    models = {"captioner": model_facts(captioner), "filter": model_facts(filter_)}
    summary = summarise(rows, output, settings, models, started, time.time())
    write_run(rows, summary, captioner.image_options)
    return summary


def _check_models(captioner: Blip, filter_: Blip) -> None:
    if captioner.config.kind not in ("caption", "pretrain"):
        raise ValueError(
            f"the captioner {captioner.source} is of kind {captioner.config.kind!r}, which writes "
            "no captions; give a checkpoint of kind 'caption' or 'pretrain'"
        )
    if not filter_.config.has_matching:
        raise ValueError(
            f"the filter {filter_.source} is of kind {filter_.config.kind!r}, which has no ITM "
            "head; give a checkpoint of kind 'retrieval' or 'pretrain'"
        )


def _read(records: Sequence[Record], captioner: Blip, filter_: Blip) -> Iterator[_Item]:
    """Read each picture once, or once for each model where they want different sizes."""
    paths = [record.path for record in records]
    captioned = read_pictures(paths, captioner.image_options)
    if filter_.image_options == captioner.image_options:
        for record, picture in zip(records, captioned, strict=True):
            yield _Item(record, picture, picture)
    else:
        filtered = read_pictures(paths, filter_.image_options)
        for record, *pictures in zip(records, captioned, filtered, strict=True):
            yield _Item(record, *pictures)


def _finish(
    batch: Sequence[_Item], first: int, captioner: Blip, filter_: Blip, options: CapFiltOptions
) -> list[Row]:
    """The rows of a batch, in its order."""
    readable = [item for item in batch if item.failure is None]
    candidates = iter(_candidates(readable, captioner, filter_, options) if readable else ())
    rows = []
    for number, item in enumerate(batch, first):
        picture = item.failure or item.captioned
        read = item.failure is None
        rows.append(
            Row(
                key=item.record.key,
                path=displayable(item.record.path.absolute()),
                status=picture.status,
                error_message=picture.error or item.record.web_error,
                width=picture.width if read else None,
                height=picture.height if read else None,
                number=number,
                web_texts=() if item.record.web_text is None else (item.record.web_text,),
                candidates=next(candidates) if read else (),
            )
        )
    return rows


def _candidates(
    items: Sequence[_Item], captioner: Blip, filter_: Blip, options: CapFiltOptions
) -> list[tuple[Candidate, ...]]:
    """See, caption and score pictures; the decided candidates of each."""
    number = len(items)
    memory = captioner.see(stack([item.captioned for item in items]), batch_size=number)
    captions = captioner.caption(
        memory,
        options.prompt,
        seed=[stable_seed(item.record.key, options.seed) for item in items],
        batch_size=number,
        **options.search(),
    )
    if filter_ is not captioner:
        memory = filter_.see(stack([item.filtered for item in items]), batch_size=number)
    written = [
        [*_web_text(item.record), *map(_from_generated, texts)]
        for item, texts in zip(items, captions, strict=True)
    ]
    return _score(written, memory, filter_, options)


def _score(
    written: Sequence[Sequence[Candidate]],
    memory: ImageMemory,
    filter_: Blip,
    options: CapFiltOptions,
) -> list[tuple[Candidate, ...]]:
    """The candidates of each picture, with scores and decision where there is a text to score."""
    drafts = [[mark_empty(candidate) for candidate in candidates] for candidates in written]
    chosen = [(i, c.text) for i, some in enumerate(drafts) for c in some if can_be_scored(c)]
    owners, texts = [i for i, _ in chosen], [text for _, text in chosen]
    limit = options.max_text_length
    scores = score_texts(filter_, memory, texts, owners, limit)
    judgements = zip(scores, are_cut(filter_, texts, limit), strict=True)

    def judge(candidate: Candidate) -> Candidate:
        if not can_be_scored(candidate):
            return candidate
        score, cut = next(judgements)
        candidate = replace(candidate, truncated=candidate.truncated or cut)
        return with_scores(candidate, score, options.threshold)

    return [tuple(judge(candidate) for candidate in candidates) for candidates in drafts]


def _web_text(record: Record) -> list[Candidate]:
    if record.web_error:
        return [Candidate("web", "", status=Status.FAILED_TO_READ)]
    return [] if record.web_text is None else [Candidate("web", record.web_text)]


def _from_generated(text: Generated) -> Candidate:
    return Candidate(
        source="synthetic",
        captioner=0,
        text=text.text,
        token_ids=text.token_ids,
        log_probability=text.log_probability,
        truncated=text.truncated,
    )
