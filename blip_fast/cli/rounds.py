"""`blip-fast capfilt --rounds`: CapFilt several times, with training between."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from blip_fast.cli import common

# Does one round, or goes on with it: its folder, captioner and filter; gives an exit code.
Once = Callable[[Path, str, str], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "rounds of bootstrapping",
        "CapFilt, training on what it kept, CapFilt with the result; as: --rounds 2 --finetune "
        "'./train.sh {kept} {captioner} {output}'. Rounds are in round_01 and so on of --output.",
    )
    group.add_argument("--rounds", type=int, default=1, help="how many; default 1")
    group.add_argument(
        "--finetune",
        metavar="COMMAND",
        action="append",
        default=[],
        help="run between two rounds, without a shell, may be given several times; {kept} is the "
        "folder of kept pairs, {captioner} and {filter} the models so far, {round} the number, "
        "{output} a folder where it must leave captioner or filter, or model for both",
    )


def asked(args: argparse.Namespace) -> bool:
    """Whether a command is one of several rounds, or of the first of them."""
    return args.rounds != 1 or bool(args.finetune)


def refuse(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: where the arguments cannot be those of rounds.
    """
    from blip_fast.capfilt.rounds import check_commands

    captioners, filters = args.captioner or [None], args.filter or [None]
    if len(captioners) > 1 or len(filters) > 1:
        raise ValueError(
            f"rounds go with one captioner and one filter; {len(captioners)} and {len(filters)} "
            "were given"
        )
    if args.overwrite:
        raise ValueError("--overwrite does not go with --rounds; give another output folder")
    if args.num_shards > 1:
        raise ValueError(
            f"--num-shards {args.num_shards} does not go with --rounds, none of which would be "
            "whole; processes that are given the same command share its shards by themselves"
        )
    check_commands(args.rounds, args.finetune)


def run(args: argparse.Namespace, once: Once) -> int:
    """Do all rounds, and print where the reports are."""
    from blip_fast.capfilt.rounds import Pair, run_rounds

    first = Pair(
        (args.captioner or [common.CAPTIONER])[0],
        (args.filter or [common.FILTER])[0],
    )
    codes: list[int] = []

    def noted(folder: Path, captioner: str, filter_: str) -> None:
        codes.append(once(folder, captioner, filter_))

    for folder in run_rounds(args.output, args.rounds, args.finetune, first, noted):
        print(os.fspath((folder / "report.html").absolute()))
    return max(codes, default=0)
