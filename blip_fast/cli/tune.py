"""`blip-fast tune`: what other thresholds would keep of a CapFilt run, without a model."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_fast.cli import common

if TYPE_CHECKING:
    from blip_fast.capfilt.tune import Curve

_STEP = 5  # of the hundredths, that the table shows


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "tune",
        "Tell what other thresholds would keep of a CapFilt run, and write what one keeps.",
        "Reads the run's tables alone. With --output a new folder gets the tables with the new "
        "decisions, kept.jsonl for training where pictures are files or URLs, and a report; with "
        "--tars the kept pairs as shards. With --labels precision and recall are told, and shown "
        "in the run's report.",
    )
    parser.add_argument("run_folder", metavar="OUT", type=Path, help="a CapFilt run's folder")
    parser.add_argument(
        "--labels",
        help="which texts are true: json, jsonl or parquet rows {key, label, source, text}, or tar "
        "shards whose json holds a verdict; source and text may be left out",
    )
    parser.add_argument("--threshold", type=float, help="ITM probability to keep")
    parser.add_argument("--itc-threshold", type=float, help="ITC cosine to keep, besides")
    common.add_without(parser, "those the run left out")
    parser.add_argument("--output", type=Path, help="a folder for what the threshold keeps")
    parser.add_argument("--tars", action="store_true", help="write kept pairs as tar shards, too")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another view in the output folder"
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from blip_fast.capfilt.facts import read_facts
    from blip_fast.capfilt.labels import read_labels
    from blip_fast.capfilt.report import write_report
    from blip_fast.capfilt.tune import curve
    from blip_fast.capfilt.view import Rule, write_view

    if args.output is None and (args.tars or args.overwrite):
        raise ValueError("--tars and --overwrite are for a new view; give its --output")
    if args.output is not None and args.threshold is None:
        raise ValueError("--output needs the --threshold that decides what is kept")
    without = read_facts(args.run_folder).without if args.without is None else (*args.without,)
    rule = None if args.threshold is None else Rule(args.threshold, args.itc_threshold, without)
    labels = None if args.labels is None else read_labels(args.labels)
    told = curve(args.run_folder, labels, args.itc_threshold, without)
    if args.json:
        for line in lines(told, None if rule is None else rule.threshold, 1):
            common.print_json(line)
    else:
        print_table(told, None if rule is None else rule.threshold)
    if args.output is None or rule is None:
        if labels is not None:
            _say(args, os.fspath(write_report(args.run_folder, labels).absolute()))
        return 0
    with common.progress_bar(told.rows) as bar:
        stats = write_view(
            args.run_folder,
            args.output,
            rule,
            tars=args.tars,
            overwrite=args.overwrite,
            labels=labels,
            progress=bar.update,
        )
    for source, texts in stats["texts"].items():
        print(f"{source} texts: {texts['kept']} of {texts['count']} kept", file=sys.stderr)
    if stats["gone"]:
        print(f"{stats['gone']} texts are left out: their pictures are gone", file=sys.stderr)
    unlisted = stats["pairs"] - stats["listed"]
    if unlisted and not args.tars:
        print(
            f"{unlisted} pairs are not in kept.jsonl: their pictures lie within shards. To train "
            "on them, write shards with --tars into another folder",
            file=sys.stderr,
        )
    _say(args, os.fspath((args.output / "report.html").absolute()))
    return 0


def lines(told: Curve, threshold: float | None, step: int = _STEP) -> list[dict[str, Any]]:
    """A line of the table for each threshold that it shows, the asked one among them."""
    from blip_fast.capfilt.count import GRID

    shown = {*range(0, len(GRID), step)}
    if threshold is not None:
        shown.add(round(threshold * (len(GRID) - 1)))
    found = []
    for place in sorted(shown):
        line: dict[str, Any] = {"threshold": float(GRID[place])}
        for source, shares in told.kept.items():
            line[f"{source}_kept"] = None if shares is None else round(shares[place], 6)
        if told.quality:
            quality = told.quality[place]
            for name in ("precision", "recall", "f1"):
                value = getattr(quality, name)
                line[name] = None if value is None else round(value, 6)
        found.append(line)
    return found


def print_table(told: Curve, threshold: float | None) -> None:
    """The thresholds, a line each; the one that is asked for is marked."""
    web, synthetic = (told.totals[source] for source in ("web", "synthetic"))
    print(f"{told.rows} pictures, {web.count} web texts, {synthetic.count} synthetic texts")
    if told.quality:
        print(f"{told.labelled} texts are labelled")
    shown = lines(told, threshold)
    names = list(shown[0])
    print("  " + "".join(f"{name.replace('_', ' '):>16}" for name in names))
    for line in shown:
        asked = threshold is not None and round(line["threshold"] - threshold, 4) == 0
        cells = [f"{line['threshold']:>16.2f}"]
        for name in names[1:]:
            cells.append(f"{'-':>16}" if line[name] is None else f"{line[name]:>16.1%}")
        print(("> " if asked else "  ") + "".join(cells))


def _say(args: argparse.Namespace, path: str) -> None:
    """The page's path last; not among JSON."""
    print(path, file=sys.stderr if args.json else sys.stdout)
