"""`blip-fast capfilt`: caption web pictures, keep the texts that match."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blip_fast
from blip_fast.cli import common, rounds
from blip_fast.cli.tally import list_failures, list_some

if TYPE_CHECKING:
    from blip_fast.capfilt import CapFiltOptions, CapFiltSummary
    from blip_fast.data.web import WebSource
    from blip_fast.tasks.model import Blip


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "capfilt",
        "Caption web pictures and keep the texts that match.",
        "The output is sharded as img2dataset's: 00000.tar holds kept pairs, 00000.parquet every "
        "text with its scores, 00000_stats.json marks the shard as done; report.html shows all. "
        "The same command goes on where one was stopped; several at once share the work. Exit "
        "code 0: done, 1: no picture could be read, or a shard could not be read or written, "
        "143: stopped by SIGTERM, after the batch at hand.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of pictures with NAME.txt beside them; tar shards, as 'a/{000..099}.tar' or "
        "s3://...; parquet files; a JSON manifest, COCO's too. '::' joins shards",
    )
    parser.add_argument("--output", type=Path, required=True, help="a folder for the results")
    _add_models(parser)
    _add_captions(parser)
    _add_shards(parser)
    rounds.add_arguments(parser)
    common.add_recursive(parser)
    common.add_loading(parser)
    common.add_batch_size(parser)
    parser.set_defaults(run=run)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--captioner",
        action="append",
        help=f"model, may be given several times; default {common.CAPTIONER}",
    )
    parser.add_argument(
        "--filter",
        action="append",
        help=f"model, may be given several times; default {common.FILTER}",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="ITM probability to keep; default 0.5"
    )
    parser.add_argument("--itc-threshold", type=float, help="ITC cosine to keep, besides")
    parser.add_argument(
        "--vote",
        choices=("mean", "min", "any", "sum"),
        help="how several filters decide; default mean, or sum where there are weights",
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one a filter, for a sum")
    common.add_without(parser, "degenerate")


def _add_captions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-captions",
        "--captions",
        type=int,
        default=1,
        help="for each picture, by each captioner; default 1",
    )
    search = parser.add_mutually_exclusive_group()
    search.add_argument("--top-p", type=float, default=0.9, help="of sampling; default 0.9")
    search.add_argument("--num-beams", type=int, help="beam search instead of sampling")
    parser.add_argument(
        "--resample",
        type=int,
        default=0,
        metavar="N",
        help="how often a caption that repeats itself is sampled anew; default 0",
    )
    parser.add_argument("--prompt", default="a picture of ", help="what captions go on from")
    parser.add_argument("--min-length", type=int, default=10, help="tokens, with the prompt")
    parser.add_argument("--max-length", type=int, default=30, help="tokens, with the prompt")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; default 0")


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard-size",
        type=int,
        default=1000,
        help="pictures, where the source has no tar shards; default 1000",
    )
    parser.add_argument(
        "--image-root", help="what relative paths of manifests and tables begin below"
    )
    parser.add_argument(
        "--sidecars", action="store_true", help="kept texts as files, too, below sidecars/"
    )
    parser.add_argument(
        "--coco-json", action="store_true", help="kept pairs as COCO annotations, too"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another run in the output folder"
    )
    parser.add_argument(
        "--shard-index", type=int, default=0, help="do only every NUM_SHARDS-th shard, from this"
    )
    parser.add_argument("--num-shards", type=int, default=1, help="as of a Slurm array")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="share the work out on a Ray cluster that sees SOURCE and --output: 'auto', "
        "'ray://...'; without an address on one of this machine's own",
    )
    parser.add_argument(
        "--ray-workers", type=int, help="default: one for each GPU, else one for each machine"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds a picture may take; default 60"
    )


def run(args: argparse.Namespace) -> int:
    from blip_fast.capfilt import CapFiltOptions, refuse_other_run
    from blip_fast.capfilt.rounds import round_name
    from blip_fast.data.web import open_web

    weights = tuple(args.weights or ())
    options = CapFiltOptions(
        threshold=args.threshold,
        itc_threshold=args.itc_threshold,
        vote=args.vote or ("sum" if weights else "mean"),
        weights=weights,
        without=("degenerate",) if args.without is None else tuple(args.without),
        num_captions=args.num_captions,
        top_p=args.top_p,
        num_beams=args.num_beams,
        resample=args.resample,
        prompt=args.prompt,
        min_length=args.min_length,
        max_length=args.max_length,
        seed=args.seed,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        recursive=args.recursive,
        image_root=args.image_root,
        overwrite=args.overwrite,
        sidecars=args.sidecars,
        coco_json=args.coco_json,
        patience=args.patience,
        shard_index=args.shard_index,
        num_shards=args.num_shards,
    )
    if rounds.asked(args):
        rounds.refuse(args)
    if args.ray_workers is not None and args.ray is None:
        raise ValueError(f"--ray-workers {args.ray_workers} goes with --ray; give both")
    source = open_web(
        args.source,
        options.shard_size,
        image_root=options.image_root,
        recursive=options.recursive,
    )
    if rounds.asked(args):
        refuse_other_run(args.output / round_name(1), source, options)
        return rounds.run(
            args,
            lambda folder, captioner, filter_: _code(
                _once(args, source, options, folder, [captioner], [filter_])
            ),
        )
    refuse_other_run(args.output, source, options)
    captioners = args.captioner or [common.CAPTIONER]
    filters = args.filter or [common.FILTER]
    return told(_once(args, source, options, args.output, captioners, filters))


def told(summary: CapFiltSummary) -> int:
    """Print where the report is; give the exit code."""
    if summary.complete or (summary.undone and summary.report.exists()):
        print(os.fspath(summary.report))
    return _code(summary)


def _code(summary: CapFiltSummary) -> int:
    """Of the process: 1 where no picture could be read, or a shard was left undone."""
    return 0 if summary.successes and not summary.undone else 1


def finish(
    source: WebSource,
    output: Path,
    captioners: Sequence[Blip],
    filters: Sequence[Blip],
    options: CapFiltOptions,
) -> CapFiltSummary:
    """Run with a progress bar, and tell the summary."""
    from blip_fast.capfilt import run_capfilt

    try:
        with common.progress_bar(source.count) as bar:
            summary = run_capfilt(source, output, captioners, filters, options, bar.update)
    except SystemExit:
        print("stopped; what is done stays, and the same command goes on", file=sys.stderr)
        raise
    _report(summary)
    return summary


def _once(
    args: argparse.Namespace,
    source: WebSource,
    options: CapFiltOptions,
    output: Path,
    captioners: Sequence[str],
    filters: Sequence[str],
) -> CapFiltSummary:
    """One run by models that are named."""
    if args.ray is not None:
        return _run_on_ray(args, source.count, output, captioners, filters, options)
    loaded = {n: common.load_model(args, n) for n in dict.fromkeys([*captioners, *filters])}
    for untrained in sorted({m.source for m in loaded.values() if not m.trained}):
        print(f"{untrained!r} has untrained weights: what it says means nothing.", file=sys.stderr)
    models = [loaded[name] for name in captioners], [loaded[name] for name in filters]
    return finish(source, output, *models, options)


def _run_on_ray(
    args: argparse.Namespace,
    count: int | None,
    output: Path,
    captioners: Sequence[str],
    filters: Sequence[str],
    options: CapFiltOptions,
) -> CapFiltSummary:
    """As `finish`, but models are loaded where they work, and not here."""
    from blip_fast.capfilt import run_on_ray

    names = dict.fromkeys([*captioners, *filters])
    specs = {name: partial(blip_fast.load, name, **common.loading(args)) for name in names}
    with common.progress_bar(count) as bar:
        summary = run_on_ray(
            args.source,
            output,
            [specs[name] for name in captioners],
            [specs[name] for name in filters],
            options,
            address=args.ray,
            workers=args.ray_workers,
            progress=bar.update,
        )
    _report(summary)
    return summary


def _report(summary: CapFiltSummary) -> None:
    from blip_fast.capfilt.facts import place_of

    stats = summary.stats
    parts = [f"{stats['successes']} of {stats['count']} pictures read"]
    if not stats["count"]:
        parts = [f"no pictures in {stats['settings']['source']}"]
    if stats["failures"]:
        failed = {k: n for k, n in stats["status_dict"].items() if k != "success"}
        listed = ", ".join(f"{status} {number}" for status, number in failed.items())
        parts.append(f"{stats['failures']} failed ({listed})")
    if stats["count"]:
        parts.append(f"{stats['images_per_second']:.1f} images/s")
    print(", ".join(parts), file=sys.stderr)
    list_failures(summary.failures)
    if stats["damages"]:
        places = "1 place" if stats["damages"] == 1 else f"{stats['damages']} places"
        lost = f", {stats['lost']} samples are lost" if stats["lost"] else ""
        print(f"the source is damaged in {places}{lost}", file=sys.stderr)
        within = [loss for loss in stats["losses"] if loss["offset"] is not None]
        list_some([f"shard {loss['shard']} {place_of(loss)}" for loss in within], stats["damages"])
    for source, texts in stats["texts"].items():
        unscored = {k: n for k, n in texts["status_dict"].items() if k != "success"}
        why = "".join(f", {status} {number}" for status, number in unscored.items())
        flags = [flag for flag in stats["settings"]["without"] if texts[flag]]
        why += "".join(f", {texts[flag]} {flag} not kept" for flag in flags)
        print(f"{source} texts: {texts['kept']} of {texts['count']} kept{why}", file=sys.stderr)
    if stats["count"]:
        _report_stages(stats)
    if summary.complete:
        return
    print(f"{stats['shards']} shards are done, {summary.done} by this process", file=sys.stderr)
    if summary.undone:
        print(f"{len(summary.undone)} left undone; the same command tries again", file=sys.stderr)
        list_some([why for _, why in sorted(summary.undone.items())])
    for owner in sorted(set(summary.held.values())):
        shards = [name for name, other in summary.held.items() if other == owner]
        print(f"{owner} is at work on {', '.join(sorted(shards))}", file=sys.stderr)


def _report_stages(stats: dict[str, Any]) -> None:
    """What each stage did alone, what it waited for, and which one held the others up."""
    for name, stage in stats["stages"].items():
        total = sum(stage[part] for part in ("busy", "waited", "blocked"))
        if stage["images_per_second"] is not None and total:
            slow = "  the slowest" if name == stats["slowest"] else ""
            print(
                f"  {name:12} {stage['images_per_second']:9.1f} images/s alone, waited "
                f"{stage['waited'] / total:4.0%}{slow}",
                file=sys.stderr,
            )
