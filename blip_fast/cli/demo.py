"""`blip-fast demo`: CapFilt on the sample pictures, with the model in the package."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import blip_fast
from blip_fast.cli import capfilt, common
from blip_fast.data.table import read_rows

_OUTPUT = Path("blip_fast_demo")


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "demo",
        "Run CapFilt on sample pictures, with nothing to download.",
        f"Prints the path of the report last. A folder ./{_OUTPUT} of an earlier demo is replaced.",
    )
    parser.add_argument("--output", type=Path, help=f"a folder; default ./{_OUTPUT}")
    parser.add_argument("--device", help="cpu, cuda; default: a GPU where there is one")
    parser.set_defaults(run=run)


def samples() -> Path:
    """The folder of sample pictures; one of them is broken on purpose."""
    return Path(blip_fast.__file__).parent / "scenes" / "samples"


def run(args: argparse.Namespace) -> int:
    from blip_fast.capfilt import CapFiltOptions, refuse_other_run
    from blip_fast.data.web import open_web

    output = _OUTPUT if args.output is None else args.output
    # Only the folder named after the demo is known to be the demo's own.
    options = CapFiltOptions(overwrite=args.output is None)
    source = open_web(samples())
    refuse_other_run(output, source, options)
    model = blip_fast.load("scenes", device=args.device)
    print(f"CapFilt of {source.count} sample pictures into {output}, by the model 'scenes'.")
    if not model.trained:
        print("Its captions come from untrained weights: they are noise, and scores mean nothing.")
    code = capfilt.told(capfilt.finish(source, output, [model], [model], options))
    if model.trained:
        print(filtered(output / "00000.parquet"), file=sys.stderr)
    return code


def filtered(table: Path) -> str:
    """How well the filter told true web texts of the samples from false ones, in a line.

    Half of the samples have noise for a text, as BLIP's paper says of the web; `truth.json` has
    the verdict on each.
    """
    truth = json.loads((samples() / "truth.json").read_text(encoding="utf-8"))
    kept = {
        row["key"]
        for row in read_rows(table)
        for candidate in row["candidates"]
        if candidate["source"] == "web" and candidate["kept"]
    }
    true = {key for key, said in truth.items() if said["verdict"] == "true"}
    right = len(kept & true)
    return (
        f"Of {len(truth)} web texts {len(true)} are true; {len(kept)} were kept: precision "
        f"{right / max(1, len(kept)):.2f}, recall {right / len(true):.2f}."
    )
