"""`blip-fast match`: how well texts describe pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blip_fast.cli import common
from blip_fast.cli.tally import Tally
from blip_fast.data import Found, find_sidecar, is_url, read_sidecar
from blip_fast.images import Status
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.model import Blip


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "match",
        "Score how well texts describe pictures.",
        "Prints the ITM probability and the ITC similarity of every picture with every text; "
        "without texts, of each picture with the text beside it.",
    )
    common.add_inputs(parser)
    parser.add_argument("--text", action="append", default=[], help="may be given several times")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="one text a line, UTF-8")
    common.add_model(parser, common.FILTER)
    common.add_json(parser)
    common.add_batch_size(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    texts = [*args.text, *(common.read_lines(args.texts) if args.texts else [])]
    tally = Tally(args.json)
    found = common.find_inputs(args)
    own = None if texts else _own_texts(found, tally)
    if own is not None:
        found = [one for one in found if one in own]
        if not found:
            return tally.report("matched")
    model = common.load_model(args)
    tally.start()
    if not args.json:
        print("probability", "similarity", "picture", "text", sep="\t")
    for some, batch in common.read_jobs(found, model, args.batch_size):
        readable = [some[place] for place in batch.places]
        chosen = texts if own is None else [own[one] for one in readable]
        results = iter(_score(model, batch.pixels, chosen, own is not None) if readable else ())
        for one, picture in zip(some, batch.pictures, strict=True):
            if picture.pixels is None:
                tally.fail_picture(one.name, picture)
            else:
                _deliver(one, next(results), args.json, tally)
    return tally.report("matched")


def _own_texts(found: Sequence[Found], tally: Tally) -> dict[Found, str]:
    """The sidecar text of each picture that has one; the others are failures."""
    texts = {}
    for one in found:
        sidecar = None if is_url(one.source) else find_sidecar(Path(one.source))
        if sidecar is None:
            tally.fail(one.name, Status.EMPTY_TEXT, "there is no text beside it; give --text")
            continue
        try:
            text = read_sidecar(sidecar)
        except ValueError as error:
            tally.fail(one.name, Status.FAILED_TO_READ, str(error))
            continue
        if text:
            texts[one] = text
        else:
            tally.fail(one.name, Status.EMPTY_TEXT, f"{sidecar.name} is empty")
    return texts


def _score(
    model: Blip, pixels: Any, texts: Sequence[str], one_each: bool
) -> Iterator[list[tuple[str, float, float]]]:
    """Text, probability and similarity: for each picture all texts, or its own one."""
    memory: ImageMemory = model.see(pixels, batch_size=len(pixels))
    number = len(memory)
    pairs = [(i, i) for i in range(number)] if one_each else None
    probabilities = model.match(memory, texts, pairs, batch_size=number)
    similarities = model.similarity(memory, texts)
    for i in range(number):
        own = [i] if one_each else list(range(len(texts)))
        row = probabilities[[i]] if one_each else probabilities[i]
        yield list(
            zip([texts[j] for j in own], row.tolist(), similarities[i, own].tolist(), strict=True)
        )


def _deliver(
    found: Found, scores: Sequence[tuple[str, float, float]], json: bool, tally: Tally
) -> None:
    if any(value != value for _, *values in scores for value in values):
        tally.fail(found.name, Status.FAILED_SCORE, "a score is not a number")
        return
    if json:
        names = ("text", "probability", "similarity")
        matches = [dict(zip(names, score, strict=True)) for score in scores]
        common.print_json({"path": found.name, "matches": matches})
    else:
        for text, probability, similarity in scores:
            cells = (f"{probability:.4f}", f"{similarity:.4f}", found.name, common.one_line(text))
            print(*cells, sep="\t")
    tally.done += 1
