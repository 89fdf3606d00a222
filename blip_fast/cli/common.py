"""What several verbs share: arguments, old spellings of them, loading, progress."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import blip_fast
from blip_fast.data import (
    Batch,
    Found,
    chunks,
    default_batch_size,
    find,
    read_batches,
    read_sidecar,
)
from blip_fast.images import Decoder
from blip_fast.images.options import MAX_JPEG_PIXELS, MAX_PIXELS
from blip_fast.tasks.model import Blip

if TYPE_CHECKING:
    from tqdm import tqdm

CAPTIONER = "Salesforce/blip-image-captioning-base"
FILTER = "Salesforce/blip-itm-base-coco"
ANSWERER = "Salesforce/blip-vqa-base"

_SOURCES = "a hub id, a folder, a .pth, a .safetensors, or 'scenes', the model in the package"


def verb(subparsers: Any, name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    """The parser of a verb; `summary` is one sentence."""
    parser = subparsers.add_parser(
        name, help=summary, description=f"{summary} {details}".strip(), allow_abbrev=False
    )
    return parser


def add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="folders, picture files or URLs")
    add_recursive(parser)


def add_recursive(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(recursive=True)
    parser.add_argument(
        "--no-recursive",
        dest="recursive",
        action="store_false",
        help="leave out the folders within a folder",
    )
    parser.add_argument("--recursive", action="store_true", help=argparse.SUPPRESS)


def add_model(parser: argparse.ArgumentParser, default: str, *aliases: str) -> None:
    """`--model` and what `blip_fast.load` takes with it; aliases are accepted and not shown."""
    parser.add_argument("--model", default=default, help=f"{_SOURCES}; default {default}")
    for alias in aliases:
        parser.add_argument(alias, dest="model", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the model runs")
    group.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: see `blip-fast info`",
    )
    group.add_argument(
        "--quantize", choices=("int8",), help="hold most weights as int8, on a CPU: faster"
    )
    group.add_argument(
        "--decode",
        choices=get_args(Decoder),
        default="auto",
        help="who reads picture files; dali and nvimgcodec, extras of the package, read JPEG on "
        "the model's device and leave the other kinds to pillow; default auto, on the CPU",
    )
    add_max_pixels(group)
    group.add_argument("--image-size", type=int, help="pixels; default: the checkpoint's own")
    group.add_argument(
        "--compat",
        choices=("paper", "transformers"),
        help="whose behaviour to follow where they differ; default: paper",
    )
    group.add_argument(
        "--vocabulary", type=Path, help="a BERT vocab.txt, for checkpoints that carry none"
    )


def add_max_pixels(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--max-pixels",
        type=int,
        help=f"of a picture file; one with more is too_large. Default {MAX_PIXELS}, half of it "
        f"where decoding takes twice the memory; a JPEG of up to {MAX_JPEG_PIXELS} is decoded at a "
        "smaller size",
    )


def add_without(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--without",
        nargs="*",
        choices=("degenerate", "truncated"),
        metavar="FLAG",
        help="texts that are never kept, whatever their score: degenerate ones, in which a "
        "captioner repeats itself, or truncated ones; nothing after it: scores alone decide, as in "
        f"the paper. All stay in the tables with their scores. Default: {default}",
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, help="pictures at once; default: by device")
    # Read-ahead is the library's own affair; the number of old commands changes nothing.
    parser.add_argument("--max-data-loader-n-workers", type=int, help=argparse.SUPPRESS)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line on standard output"
    )


def modern_spelling(argv: Sequence[str]) -> list[str]:
    """Spell flags with hyphens, as `--batch_size` of older captioning scripts; values stay."""
    words: list[str] = []
    for place, word in enumerate(argv):
        if word == "--":
            return [*words, *argv[place:]]
        flag, equals, value = word.partition("=")
        words.append(flag.replace("_", "-") + equals + value if word.startswith("--") else word)
    return words


def load_model(args: argparse.Namespace, source: str | None = None) -> Blip:
    """Load `source`, or else `--model`, as the other arguments say."""
    return blip_fast.load(args.model if source is None else source, **loading(args))


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """What `blip_fast.load` is given beside the source."""
    return {
        "image_size": args.image_size,
        "dtype": args.dtype,
        "device": args.device,
        "compat": args.compat,
        "vocabulary": args.vocabulary,
        "quantize": args.quantize,
        "decoder": args.decode,
        "max_pixels": args.max_pixels,
    }


def find_inputs(args: argparse.Namespace) -> list[Found]:
    """The pictures of a command.

    Raises:
        ValueError: where there are none.
    """
    found = find(args.inputs, args.recursive)
    if not found:
        raise ValueError(f"there are no pictures in {', '.join(args.inputs)}")
    return found


def read_jobs(
    found: Sequence[Found], model: Blip, batch_size: int | None
) -> Iterator[tuple[list[Found], Batch]]:
    """The pictures of a command, batch by batch, with a progress bar on a terminal."""
    if batch_size is None:
        batch_size = default_batch_size(model.device.type)
    sources = [one.source for one in found]
    batches = read_batches(sources, model.image_options, batch_size)
    with progress_bar(len(found)) as bar:
        for some, batch in zip(chunks(found, batch_size), batches, strict=True):
            yield some, batch
            bar.update(len(some))


def progress_bar(total: int | None) -> tqdm:
    """A bar on standard error where that is a terminal, else nothing; None: nobody knows yet."""
    from tqdm import tqdm

    return tqdm(total=total, unit="image", disable=None)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that hold something, white space around them removed.

    Raises:
        ValueError: where there are none, or where the file is not UTF-8.
    """
    lines = [line.strip() for line in read_sidecar(path).splitlines()]
    if not any(lines):
        raise ValueError(f"{path} holds no text; it takes one a line")
    return [line for line in lines if line]


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def one_line(text: str) -> str:
    """A text as a cell of a table."""
    return " ".join(text.split())
