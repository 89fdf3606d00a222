"""`blip-fast scenes`: the small visual world as data, and as a judge of models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from blip_fast.cli import common


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers, "scenes", "Make data of the small visual world, or judge a model by it."
    )
    verbs = parser.add_subparsers(metavar="WHAT", required=True)
    _add_make(verbs)
    _add_train(verbs)
    _add_score(verbs)


def _add_make(verbs: Any) -> None:
    from blip_fast.config import preset

    size = preset("scenes").vision.image_size
    parser = common.verb(
        verbs,
        "make",
        "Write pictures with texts, questions or statements, and the truth about them.",
        "Captions become tar shards as img2dataset writes them; the same arguments give the same "
        "bytes.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--pairs", type=int, required=True, help="samples to write")
    parser.add_argument("--noise", type=float, default=0.0, help="share of noisy texts; default 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=size, help=f"pixels; default {size}")
    parser.add_argument(
        "--split",
        choices=("train", "seen", "unseen"),
        default="train",
        help="unseen: pairs of colour and shape that training never has",
    )
    parser.add_argument("--task", choices=("caption", "vqa", "nlvr"), default="caption")
    parser.add_argument(
        "--twins",
        type=float,
        default=0.0,
        help="share of neighbours that differ in one attribute, with captions that tell them "
        "apart; default 0",
    )
    parser.add_argument(
        "--lead", type=float, default=0.0, help="share of captions with 'a picture of' before them"
    )
    parser.add_argument("--per-shard", type=int, default=1000, help="pairs a tar; default 1000")
    parser.set_defaults(run=_make)


def _make(args: argparse.Namespace) -> int:
    from blip_fast.scenes.pairs import World
    from blip_fast.scenes.shards import make_questions, make_shards, make_statements

    if args.task != "caption" and args.noise:
        raise ValueError(f"--noise {args.noise} is for captions; --task {args.task} has none")
    world = World(args.seed, args.split, args.size, args.noise, args.twins, args.lead)
    if args.task == "caption":
        shards = make_shards(args.folder, world, args.pairs, args.per_shard)
        print(f"{args.pairs} pairs in {shards} shards in {args.folder}")
    else:
        make = make_questions if args.task == "vqa" else make_statements
        print(f"{args.pairs} samples in {make(args.folder, world, args.pairs)}")
    return 0


def _add_train(verbs: Any) -> None:
    parser = common.verb(
        verbs,
        "train",
        "Train the model in the package anew: vision, captions, all objectives, questions.",
        "Nothing is read: pictures are drawn as they are needed. Goes on where it was stopped.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="minutes, to see it learn")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from blip_fast.scenes.stages import train_scenes

    print(f"trained: {train_scenes(args.folder, args.seed, args.quick)}")
    return 0


def _add_score(verbs: Any) -> None:
    parser = common.verb(
        verbs,
        "score",
        "Judge a model by held-out scenes: captions, ITM, retrieval, answers.",
        "The same model, seed and number of scenes give the same table.",
    )
    parser.add_argument("model", metavar="MODEL", help="as for --model of other verbs")
    parser.add_argument("--answerer", help="a VQA model to judge in the same table")
    parser.add_argument("--scenes", type=int, default=512, help="in each column; default 512")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", help="what captions go on from; default 'a picture of '")
    common.add_loading(parser)
    common.add_json(parser)
    parser.set_defaults(run=_score)


def _score(args: argparse.Namespace) -> int:
    from blip_fast.scenes.score import score
    from blip_fast.scenes.table import table
    from blip_fast.tasks.model import DEFAULT_PROMPT

    model = common.load_model(args)
    answerer = None if args.answerer is None else common.load_model(args, args.answerer)
    prompt = DEFAULT_PROMPT if args.prompt is None else args.prompt
    card = score(model, answerer, scenes=args.scenes, seed=args.seed, prompt=prompt)
    if args.json:
        common.print_json(card.to_dict())
    else:
        print(table(card))
    return 0
