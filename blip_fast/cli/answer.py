"""`blip-fast answer`: one question about every picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from blip_fast.cli import common
from blip_fast.cli.tally import Tally
from blip_fast.data import Found
from blip_fast.images import Status
from blip_fast.tasks.captions import Generated


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "answer",
        "Answer a question about every picture.",
        "The answer is written freely, or chosen from a list of candidates.",
    )
    common.add_inputs(parser)
    parser.add_argument("--question", required=True)
    parser.add_argument(
        "--candidates", type=Path, metavar="FILE", help="answers to choose from, one a line, UTF-8"
    )
    common.add_model(parser, common.ANSWERER)
    common.add_json(parser)
    common.add_batch_size(parser)
    parser.add_argument("--num-beams", type=int, default=3, help="of written answers; default 3")
    parser.add_argument("--min-length", type=int, default=1, help="tokens, with [DEC]")
    parser.add_argument("--max-length", type=int, default=10, help="tokens, with [DEC]")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    candidates = common.read_lines(args.candidates) if args.candidates else None
    tally = Tally(args.json)
    found = common.find_inputs(args)
    model = common.load_model(args)
    tally.start()
    for some, batch in common.read_jobs(found, model, args.batch_size):
        answers = iter(
            model.answer(
                batch.pixels,
                [args.question] * len(batch.places),
                candidates,
                num_beams=args.num_beams,
                min_length=args.min_length,
                max_length=args.max_length,
                batch_size=len(batch.places),
            )
            if batch.places
            else ()
        )
        for one, picture in zip(some, batch.pictures, strict=True):
            if picture.pixels is None:
                tally.fail_picture(one.name, picture)
            else:
                _deliver(one, next(answers)[0], args.json, tally)
    return tally.report("answered")


def _deliver(found: Found, answer: Generated, json: bool, tally: Tally) -> None:
    if not answer.text.strip():
        tally.fail(found.name, Status.EMPTY_TEXT, "the model wrote an empty answer")
        return
    if json:
        common.print_json(
            {
                "path": found.name,
                "answer": answer.text,
                "log_probability": answer.log_probability,
            }
        )
    else:
        print(found.name, common.one_line(answer.text), sep="\t")
    tally.done += 1
