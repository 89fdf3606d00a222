"""`blip-fast capfilt --rounds`: CapFilt several times, with training between."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blip_fast.cli import common

if TYPE_CHECKING:
    from blip_fast.capfilt import CapFiltOptions
    from blip_fast.data.web import WebSource
    from blip_fast.tasks.model import Blip

    # Runs CapFilt, prints its summary, gives the exit code.
    Finish = Callable[[WebSource, Path, Sequence[Blip], Sequence[Blip], CapFiltOptions], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often; each begins with models of the last"
    )
    parser.add_argument(
        "--finetune",
        metavar="COMMAND",
        action="append",
        default=[],
        help="run between two rounds, may be given several times; {kept} is the folder of kept "
        "pairs, {captioner} and {filter} the models so far, {round} the number, {output} a folder "
        "where it must leave captioner or filter, or model for both",
    )


def run(
    args: argparse.Namespace, source: WebSource, options: CapFiltOptions, finish: Finish
) -> int:
    """Do all rounds; each in a folder `round_01` and so on of the output."""
    from blip_fast.capfilt.rounds import Pair, check_commands, run_rounds

    captioners = args.captioner or [common.CAPTIONER]
    filters = args.filter or [common.FILTER]
    if len(captioners) > 1 or len(filters) > 1:
        raise ValueError(
            f"rounds go with one captioner and one filter; {len(captioners)} and {len(filters)} "
            "were given"
        )
    check_commands(args.rounds, args.finetune)

    def one(folder: Path, captioner: str, filter_: str) -> None:
        loaded = {name: common.load_model(args, name) for name in {captioner, filter_}}
        finish(source, folder, [loaded[captioner]], [loaded[filter_]], options)

    folders = run_rounds(
        args.output, args.rounds, args.finetune, Pair(captioners[0], filters[0]), one
    )
    print(os.fspath((folders[-1] / "report.html").absolute()))
    return 0
