"""What the models do with a batch: see it, caption it, score its texts.

A model that is captioner and filter sees each picture once; so do several models with the same
vision transformer, which each project its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from blip_fast.capfilt.decide import can_be_scored, prepare, unscored, with_scores
from blip_fast.capfilt.jobs import Batch, Job
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.room import Room
from blip_fast.capfilt.rows import Candidate, Row
from blip_fast.capfilt.score import are_cut, score_texts
from blip_fast.data import stable_seed
from blip_fast.images import Status
from blip_fast.tasks.captions import Generated
from blip_fast.tasks.model import Blip

T = TypeVar("T")


class Models:
    """The captioners and filters of a run.

    Raises:
        ValueError: where one lacks a part, or there are not as many weights as filters.
    """

    def __init__(
        self, captioners: Sequence[Blip], filters: Sequence[Blip], options: CapFiltOptions
    ) -> None:
        check_models(captioners, filters, options)
        self.captioners, self.filters, self.options = list(captioners), list(filters), options
        self._eyes = _same_eyes([*captioners, *filters])
        self._room = Room()

    @property
    def image_options(self) -> list[Any]:
        return [model.image_options for model in (*self.captioners, *self.filters)]

    def caption(self, batch: Batch, number: int) -> None:
        """Have one captioner write its captions; the web texts come before those of the first."""
        jobs = batch.usable
        if number == 0:
            for job in jobs:
                job.candidates = web_candidates(job)
        if not jobs:
            return
        model = self.captioners[number]

        def write(some: Sequence[Job], memory: Any) -> list[Sequence[Generated]]:
            rows = self._sample(some, memory, number)
            for turn in range(1, self.options.resample + 1):
                places = [n for n, row in enumerate(rows) if any(t.degenerate for t in row)]
                if not places:
                    break
                again = [some[place] for place in places]
                fresh = self._sample(again, _see(model, again), number, turn)
                for place, row in zip(places, fresh, strict=True):
                    rows[place] = _mended(rows[place], row)
            return rows

        role = "captioner"
        for job, texts in self._with_memory(batch, model, write, role, Status.TOO_LARGE):
            job.candidates += [_from_generated(text, number) for text in texts]

    def _sample(
        self, jobs: Sequence[Job], memory: Any, number: int, turn: int = 0
    ) -> list[Sequence[Generated]]:
        """What a captioner writes; in each turn by other random numbers."""
        keys = [job.picture.key for job in jobs if job.picture is not None]
        if turn:
            keys = [f"{key}\n{turn}" for key in keys]
        # Two captioners that sample must not draw the same numbers.
        seeds = [stable_seed(key, self.options.seed + number) for key in keys]
        captions = self.captioners[number].caption(
            memory,
            self.options.prompt,
            seed=seeds,
            batch_size=len(jobs),
            **self.options.search(),
        )
        for reason in filter(None, captions.errors):  # what one text alone has no room for
            raise torch.OutOfMemoryError(reason)
        return list(captions)

    def score(self, batch: Batch, number: int) -> None:
        """Have one filter score all texts."""
        jobs = batch.usable
        if number == 0:
            for job in jobs:
                job.candidates = prepare(job.candidates)
                job.scores = [()] * sum(map(can_be_scored, job.candidates))
        if not jobs:
            return
        model, limit = self.filters[number], self.options.max_text_length

        def judge(some: Sequence[Job], memory: Any) -> list[list[Any]]:
            owners = [i for i, job in enumerate(some) for _ in job.scores]
            texts = [c.text for job in some for c in job.candidates if can_be_scored(c)]
            scores = iter(score_texts(model, memory, texts, owners, limit))
            cut = iter(are_cut(model, texts, limit))
            return [[(next(scores), next(cut)) for _ in job.scores] for job in some]

        role = "filter"
        for job, judged in self._with_memory(batch, model, judge, role, Status.FAILED_SCORE):
            job.scores = [(*old, new) for old, (new, _) in zip(job.scores, judged, strict=True)]
            cuts = iter(cut for _, cut in judged)
            job.candidates = [
                replace(c, truncated=True) if can_be_scored(c) and next(cuts) else c
                for c in job.candidates
            ]

    def decide(self, batch: Batch) -> None:
        """Join the scores, decide, and make each picture a row."""
        batch.memories.clear()
        rule = self.options.rule()
        for job in batch.items:
            if not job.usable:
                job.row = _row(job, batch.name, [unscored(c) for c in prepare(job.candidates)])
                continue
            scores = iter(job.scores)
            decided = [
                with_scores(c, next(scores), **rule) if can_be_scored(c) else c
                for c in job.candidates
            ]
            job.row = _row(job, batch.name, decided)

    def _with_memory(
        self,
        batch: Batch,
        model: Blip,
        work: Callable[[Sequence[Job], Any], Sequence[T]],
        role: str,
        status: Status,
    ) -> list[tuple[Job, T]]:
        """Do something with a model's memory of the usable pictures, or where there is no room for
        it with that of some at a time. What does not fit alone gets a status."""
        jobs = batch.usable

        def of(some: Sequence[Job]) -> Sequence[T]:
            try:
                whole = len(some) == len(jobs)
                return work(some, self._memory(batch, model) if whole else _see(model, some))
            except Exception:
                batch.memories.clear()
                raise

        done: list[tuple[Job, T]] = []
        for job, result, reason in self._room.through(model, jobs, of):
            if result is None:
                batch.memories.clear()  # they are of the pictures that were usable
                job.fail(status, f"no room for it alone in the {role} {model.source}: {reason}")
            else:
                done.append((job, result))
        return done

    def _memory(self, batch: Batch, model: Blip) -> Any:
        """That of a batch; made once, for all models with the same eyes."""
        if id(model) not in batch.memories:
            group = self._eyes[id(model)]
            if len(group) == 1:
                batch.memories[id(model)] = _see(model, batch.usable)
            else:
                pixels = torch.stack([job.views[model.image_options] for job in batch.usable])
                with torch.inference_mode():
                    tokens = model.med.vision(pixels.to(model.device))
                    for other in group:
                        batch.memories[id(other)] = other.med.memory_of(tokens)
        return batch.memories[id(model)]


def check_models(
    captioners: Sequence[Blip], filters: Sequence[Blip], options: CapFiltOptions
) -> None:
    """Raise a ValueError where models lack a part, or weights do not fit them."""
    if not captioners or not filters:
        raise ValueError(
            f"{len(captioners)} captioners and {len(filters)} filters; give at least one of each"
        )
    for model in captioners:
        if model.config.kind not in ("caption", "pretrain"):
            raise ValueError(
                f"the captioner {model.source} is of kind {model.config.kind!r}, which writes no "
                "captions; give a checkpoint of kind 'caption' or 'pretrain'"
            )
    for model in filters:
        if not model.config.has_matching:
            raise ValueError(
                f"the filter {model.source} is of kind {model.config.kind!r}, which has no ITM "
                "head; give a checkpoint of kind 'retrieval' or 'pretrain'"
            )
    if options.weights and len(options.weights) != len(filters):
        raise ValueError(f"{len(options.weights)} weights for {len(filters)} filters; give as many")


def web_candidates(job: Job) -> list[Candidate]:
    """The texts that came with a picture, one that could not be read among them."""
    assert job.picture is not None
    failed = [Candidate("web", "", status=Status.FAILED_TO_READ)] * job.picture.text_failed
    return [*(Candidate("web", text) for text in job.picture.texts), *failed]


def _mended(row: Sequence[Generated], fresh: Sequence[Generated]) -> Sequence[Generated]:
    """Texts with those that go round in circles replaced by others, as far as there are sound
    ones."""
    sound = iter([text for text in fresh if not text.degenerate])
    return [next(sound, text) if text.degenerate else text for text in row]


def _from_generated(text: Generated, captioner: int) -> Candidate:
    return Candidate(
        source="synthetic",
        text=text.text,
        captioner=captioner,
        token_ids=text.token_ids,
        log_probability=text.log_probability,
        truncated=text.truncated,
        degenerate=text.degenerate,
    )


def _row(job: Job, shard: str, candidates: Sequence[Candidate]) -> Row:
    picture = job.picture
    assert picture is not None
    return Row(
        key=picture.key,
        path=picture.path,
        status=job.status,
        shard=int(shard),
        number=job.number,
        error_message=job.error,
        width=job.width,
        height=job.height,
        web_texts=picture.texts,
        candidates=tuple(candidates),
    )


def _see(model: Blip, jobs: Sequence[Job]) -> Any:
    pixels = torch.stack([job.views[model.image_options] for job in jobs])
    return model.see(pixels, batch_size=len(jobs))


def _same_eyes(models: Sequence[Blip]) -> dict[int, list[Blip]]:
    """For each model, by its id, those that would see the very same tokens; itself among them."""
    distinct = list({id(model): model for model in models}.values())
    groups: list[list[Blip]] = []
    for model in distinct:
        group = next((g for g in groups if _see_alike(g[0], model)), None)
        if group is None:
            groups.append([model])
        else:
            group.append(model)
    return {id(model): group for group in groups for model in group}


def _see_alike(one: Blip, other: Blip) -> bool:
    if (one.image_options, one.device, one.dtype) != (
        other.image_options, other.device, other.dtype,
    ):  # fmt: skip
        return False
    ours, theirs = one.med.vision.state_dict(), other.med.vision.state_dict()
    return ours.keys() == theirs.keys() and all(
        _equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor):  # packed weights, of which only the same are equal
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
