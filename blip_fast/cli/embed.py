"""`blip-fast embed`: features of pictures, and of texts, that can be compared with each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from blip_fast.cli import common
from blip_fast.cli.tally import Tally
from blip_fast.data import displayable
from blip_fast.data.index import write_index
from blip_fast.tasks.model import Blip


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "embed",
        "Write the normalised ITC features of pictures.",
        "NAME.npy holds one float32 row for each picture, NaN where it could not be read; "
        "NAME.parquet says which picture a row is, and its status. With --texts, "
        "NAME_texts.npy and NAME_texts.parquet hold the same of the texts. "
        "`blip-fast search` reads both.",
    )
    common.add_inputs(parser)
    parser.add_argument("--output", type=Path, metavar="NAME.npy", help="the features' file")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="one text a line, UTF-8")
    common.add_model(parser, common.FILTER)
    common.add_json(parser)
    common.add_batch_size(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    texts = common.read_lines(args.texts) if args.texts else []
    if args.output is None and not args.json:
        raise ValueError("there is nowhere to put the features; give --output NAME.npy or --json")
    if args.output is not None and args.output.suffix != ".npy":
        raise ValueError(f"--output {displayable(args.output)} must end in .npy")
    if texts and args.output is None:
        raise ValueError("the features of --texts go into files; give --output NAME.npy")
    found = common.find_inputs(args)
    tally = Tally(args.json)
    model = common.load_model(args)
    if not model.config.has_matching:
        raise ValueError(
            f"{model.source} is a checkpoint of kind {model.config.kind!r}, which has no aligned "
            "features; give one of kind 'retrieval' or 'pretrain'"
        )
    tally.start()
    features = np.full((len(found), model.config.embed_width), np.nan, np.float32)
    rows: list[dict[str, str]] = []
    for some, batch in common.read_jobs(found, model, args.batch_size):
        if batch.places:
            places = [len(rows) + place for place in batch.places]
            embedded = model.embed_images(batch.pixels, batch_size=len(places))
            features[places] = embedded.numpy()
        for one, picture in zip(some, batch.pictures, strict=True):
            if picture.pixels is None:
                tally.fail_picture(one.name, picture)
            else:
                tally.done += 1
                if args.json:
                    values = features[len(rows)].tolist()
                    common.print_json({"path": one.name, "embedding": values})
            status, error = picture.status.value, picture.error
            rows.append({"path": one.name, "status": status, "error_message": error})
    if not tally.done:
        return tally.report("embedded")  # an index that is there already stays as it is
    if args.output is not None:
        columns = ("path", "status", "error_message")
        write_index(args.output, features, rows, columns, _facts(model))
    if texts:
        _write_texts(args.output, model, texts)
    return tally.report("embedded")


def _write_texts(output: Path, model: Blip, texts: list[str]) -> None:
    features = model.embed_texts(texts).numpy()
    path = output.with_name(f"{output.stem}_texts.npy")
    write_index(path, features, [{"text": text} for text in texts], ("text",), _facts(model))


def _facts(model: Blip) -> dict[str, Any]:
    """By whom a search asks to be answered: features of two models cannot be compared."""
    return {"model": model.source, "sha256": model.sha256, "image_size": model.image_size}
