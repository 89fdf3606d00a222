"""`blip-fast capfilt`: caption web pictures, keep the texts that match."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_fast.cli import common
from blip_fast.cli.tally import count_statuses, list_failures
from blip_fast.data import find

if TYPE_CHECKING:
    from blip_fast.capfilt import CapFiltOptions, CapFiltSummary
    from blip_fast.tasks.model import Blip


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "capfilt",
        "Caption a folder of web pictures and keep the texts that match.",
        "A picture's web text is NAME.txt beside it. Every text with its scores goes into "
        "00000.parquet, the kept pairs into kept.json, and report.html shows both.",
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a folder of pictures")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the results")
    parser.add_argument(
        "--captioner", default=common.CAPTIONER, help=f"model; default {common.CAPTIONER}"
    )
    parser.add_argument("--filter", default=common.FILTER, help=f"model; default {common.FILTER}")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="ITM probability to keep; default 0.5"
    )
    parser.add_argument("--num-captions", type=int, default=1, help="for each picture; default 1")
    search = parser.add_mutually_exclusive_group()
    search.add_argument("--top-p", type=float, default=0.9, help="of sampling; default 0.9")
    search.add_argument("--num-beams", type=int, help="beam search instead of sampling")
    parser.add_argument("--prompt", default="a picture of ", help="what captions go on from")
    parser.add_argument("--min-length", type=int, default=10, help="tokens, with the prompt")
    parser.add_argument("--max-length", type=int, default=30, help="tokens, with the prompt")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; default 0")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a finished run in the output folder"
    )
    common.add_recursive(parser)
    common.add_loading(parser)
    common.add_batch_size(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from blip_fast.capfilt import CapFiltOptions
    from blip_fast.capfilt.write import refuse_finished

    options = CapFiltOptions(
        threshold=args.threshold,
        num_captions=args.num_captions,
        top_p=args.top_p,
        num_beams=args.num_beams,
        prompt=args.prompt,
        min_length=args.min_length,
        max_length=args.max_length,
        seed=args.seed,
        batch_size=args.batch_size,
        recursive=args.recursive,
        overwrite=args.overwrite,
    )
    refuse_finished(args.output, args.overwrite)
    number = _count(args.source, args.recursive)
    captioner = common.load_model(args, args.captioner)
    same = args.filter == args.captioner
    filter_ = captioner if same else common.load_model(args, args.filter)
    for source in sorted({m.source for m in (captioner, filter_) if not m.trained}):
        print(f"{source!r} has untrained weights: what it says means nothing.", file=sys.stderr)
    return finish(args.source, args.output, captioner, filter_, options, number)


def finish(
    source: Path,
    output: Path,
    captioner: Blip,
    filter_: Blip,
    options: CapFiltOptions,
    number: int,
) -> int:
    """Run over `number` pictures with a progress bar, print the summary, give the exit code."""
    from blip_fast.capfilt import run_capfilt

    with common.progress_bar(number) as bar:
        summary = run_capfilt(source, output, captioner, filter_, options, bar.update)
    _report(summary)
    return 0 if summary.successes else 1


def _count(source: Path, recursive: bool) -> int:
    """How many pictures there are; refused before a model is loaded where there is none.

    Raises:
        ValueError: where `source` is not a folder that holds pictures.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder; give one that holds pictures")
    number = len(find([source], recursive))
    if not number:
        raise ValueError(f"there are no pictures in {source}")
    return number


def _report(summary: CapFiltSummary) -> None:
    stats = summary.stats
    parts = [f"{stats['successes']} of {stats['count']} pictures read"]
    if summary.failures:
        parts.append(f"{len(summary.failures)} failed ({count_statuses(summary.failures)})")
    parts.append(f"{stats['images_per_second']:.1f} images/s")
    print(", ".join(parts), file=sys.stderr)
    list_failures(summary.failures)
    for source, texts in stats["texts"].items():
        unscored = {k: n for k, n in texts["status_dict"].items() if k != "success"}
        why = "".join(f", {status} {number}" for status, number in unscored.items())
        print(f"{source} texts: {texts['kept']} of {texts['count']} kept{why}", file=sys.stderr)
    print(os.fspath(summary.report))
