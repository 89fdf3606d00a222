"""`blip-fast demo`: CapFilt on the shard in the package, with the model in the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blip_fast
from blip_fast.cli import capfilt, common
from blip_fast.data.table import read_rows

if TYPE_CHECKING:
    from blip_fast.capfilt.labels import Labels

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


def sample_shard() -> Path:
    """Pictures of the small world, of which training has none, in a shard like the web's.

    Half of the texts are noise; the json members tell which are true. One picture is broken, one
    has no text and one an empty text.
    """
    return Path(blip_fast.__file__).parent / "scenes" / "samples" / "00000.tar"


def run(args: argparse.Namespace) -> int:
    from blip_fast.capfilt import CapFiltOptions, refuse_other_run
    from blip_fast.capfilt.labels import read_labels
    from blip_fast.capfilt.report import write_report
    from blip_fast.data.web import open_web

    output = _OUTPUT if args.output is None else args.output
    # Only the folder named after the demo is known to be the demo's own.
    options = CapFiltOptions(overwrite=args.output is None)
    source = open_web(sample_shard())
    refuse_other_run(output, source, options)
    model = blip_fast.load("scenes", device=args.device)
    print(f"CapFilt of the sample pictures into {output}, by the model 'scenes'.")
    if not model.trained:
        print("Its captions come from untrained weights: they are noise, and scores mean nothing.")
    code = capfilt.told(capfilt.finish(source, output, [model], [model], options))
    if model.trained:
        labels = read_labels(sample_shard())
        write_report(output, labels)  # once more, now with the truth
        print("\n".join(filtered(output / "00000.parquet", labels)), file=sys.stderr)
    return code


def filtered(table: Path, labels: Labels) -> list[str]:
    """What the filter made of the web texts, and how well it told true ones from false ones."""
    known = [
        (is_true, candidate["kept"], candidate["text"])
        for row in read_rows(table)
        for candidate in row["candidates"]
        if candidate["source"] == "web"
        and (is_true := labels.of(row["key"], "web", candidate["text"])) is not None
    ]
    true = sum(is_true for is_true, _, _ in known)
    kept = [is_true for is_true, was_kept, _ in known if was_kept]
    thrown = [text for is_true, was_kept, text in known if not was_kept and not is_true]
    return [
        f"Rightly thrown out: {', '.join(repr(text) for text in thrown[:3])} and "
        f"{len(thrown) - 3} more.",
        f"Of {len(known)} web texts {true} are true; {len(kept)} were kept: precision "
        f"{sum(kept) / max(1, len(kept)):.2f}, recall {sum(kept) / true:.2f}.",
    ]
