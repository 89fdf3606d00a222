"""`blip-fast report`: a training run as a page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blip_fast
from blip_fast.cli import common
from blip_fast.data import displayable, replacing
from blip_fast.data.samples import BadSample, Sample, Source
from blip_fast.images import Status

if TYPE_CHECKING:
    from blip_fast.train.recipe import Recipe
    from blip_fast.train.report import SampleCaption

_NAME = "report.html"
_LOOKED_AT = 20  # samples for each picture shown: a picture may come with many captions


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "report",
        "Show a training run as a page: curves, recipe and sample captions.",
        f"Writes RUN/{_NAME}, one file that asks no other machine for anything. It may be "
        "written while the run goes on.",
    )
    parser.add_argument("training_run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument(
        "--samples",
        type=int,
        default=12,
        help="training pictures to caption with RUN/model; default 12, 0 for none",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from blip_fast.train.report import read_log, render_report

    if args.samples < 0:
        raise ValueError(f"--samples is {args.samples}; it must be at least 0")
    read_log(args.training_run)  # refused before a model is loaded
    samples: list[SampleCaption] = []
    why_none = "none were asked for"
    if args.samples:
        try:
            samples = caption_samples(args.training_run, args.samples, args.device)
        except (ValueError, OSError) as error:  # a page of curves is better than none
            why_none = str(error)
    page = args.training_run / _NAME
    with replacing(page) as beside:
        beside.write_text(render_report(args.training_run, samples, why_none), encoding="utf-8")
    print(displayable(page))
    return 0


def caption_samples(run: Path, number: int, device: str | None) -> list[SampleCaption]:
    """The first pictures of a run's data with their captions and those of the run's model.

    Raises:
        ValueError: where the task writes no captions, there is no model yet, or data are gone.
        OSError: where a file cannot be read.
    """
    from blip_fast.train.recipe import read_recipe
    from blip_fast.train.report import SampleCaption
    from blip_fast.train.run import fixed_sources

    recipe, _ = read_recipe(run / "recipe.yaml")
    if recipe.task not in ("pretrain", "caption"):
        raise ValueError(f"a model of the task {recipe.task} writes no captions")
    if not (run / "model").is_dir():
        raise ValueError("there is no model yet; it is written at the end of an epoch")
    samples = list(_first_pictures(fixed_sources(recipe), number))
    if not samples:
        raise ValueError("none of the first training samples can be read")
    model = blip_fast.load(run / "model", device=device)
    captions = model.caption(
        [sample.images[0] for sample in samples],
        prompt=recipe.prompt if recipe.task == "caption" else "",
        max_length=_length(recipe),
        min_length=1,
    )
    return [
        SampleCaption(
            image=sample.images[0],
            key=sample.key,
            human=sample.text,
            model=text,
            error="" if status is Status.SUCCESS else error,
        )
        for sample, text, status, error in zip(
            samples, captions.texts, captions.status, captions.errors, strict=True
        )
    ]


def _length(recipe: Recipe) -> int:
    return min(recipe.max_length, 30)


def _first_pictures(sources: list[Source], number: int) -> Iterator[Sample]:
    """The first samples whose pictures differ; those that cannot be read are passed over."""
    seen: set[str] = set()
    looked = 0
    for source in sources:
        for shard in range(len(source.counts)):
            rows = source.open(shard)
            for place in range(len(rows)):
                looked += 1
                if len(seen) == number or looked > number * _LOOKED_AT:
                    return
                try:
                    sample = rows[place]
                except BadSample:
                    continue
                if sample.image_id not in seen:
                    seen.add(sample.image_id)
                    yield sample
