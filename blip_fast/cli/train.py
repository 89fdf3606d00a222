"""`blip-fast train`: pretraining and finetuning from a recipe."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from blip_fast.cli import common
from blip_fast.data import displayable


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "train",
        "Pretrain or finetune a BLIP, or go on with a run that was stopped.",
        "Alone, or as `torchrun --nproc-per-node 8 -m blip_fast train ...`. The same command goes "
        "on from the newest checkpoint. The run's folder holds recipe.yaml, log.jsonl, "
        "checkpoints/ and model/, which --model takes elsewhere; `blip-fast report` shows it.",
    )
    # Settings may stand on either side of --output, which argparse allows in this way only.
    parser.usage = "blip-fast train RECIPE [KEY=VALUE ...] --output RUN"
    parser.add_argument(
        "words",
        metavar="RECIPE [KEY=VALUE ...]",
        nargs="*",
        help="a YAML file, also one of BLIP's configs/, or one of the package: pretrain, "
        "caption_coco, retrieval_coco, retrieval_flickr, vqa, nlvr, photos_small; and settings "
        "that go before its own: init_lr=1e-5 train_file=[a.json,b.json]",
    )
    parser.add_argument(
        "--output", metavar="RUN", nargs="+", required=True, help="the run's folder"
    )
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    from blip_fast.train.recipe import read_recipe
    from blip_fast.train.recipe_checks import check_files

    output, *behind = args.output
    words = [*args.words, *behind]
    if not words:
        args.refuse("name a RECIPE")
    first = os.environ.get("RANK", "0") == "0"  # as torchrun numbers its processes
    try:
        recipe, unread = read_recipe(words[0], words[1:])
    except ValueError:
        if first:
            raise
        return 1  # the first process says it, once for all
    check_files(recipe)  # said by every process: one machine may lack what another has
    if unread and first:
        print(f"not used in {recipe.task} training: {', '.join(unread)}", file=sys.stderr)

    from blip_fast.train.run import run as train

    summary = train(recipe, Path(output))
    if first:
        losses = "  ".join(f"{name} {value:.4f}" for name, value in summary.losses.items())
        print(f"{summary.step} steps, {summary.epoch} epochs  {losses}".rstrip())
        print(displayable(summary.model))
    return 0
