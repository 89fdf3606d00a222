"""`blip-fast search`: the pictures that a text describes, or what is like a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blip_fast.cli import common
from blip_fast.data import displayable, is_url, replacing

if TYPE_CHECKING:
    from blip_fast.tasks.search import Hit

_RERANK = 32


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "search",
        "Find the pictures that a text describes, or what is like a picture.",
        "INDEX is what `blip-fast embed` wrote. A text among pictures, and a picture among texts, "
        "is ranked again by ITM.",
    )
    parser.add_argument("index", metavar="INDEX", type=Path, help="NAME.npy of `blip-fast embed`")
    parser.add_argument("query", metavar="QUERY", help="a text, or a picture's path or URL")
    parser.add_argument(
        "--as",
        dest="of",
        choices=("text", "image"),
        help="what QUERY is; default: an image where it is a URL or a file that exists",
    )
    parser.add_argument("--number", type=int, default=10, help="of results; default 10")
    parser.add_argument(
        "--rerank", type=int, help=f"of the nearest, judged by ITM; default {_RERANK}, 0 for none"
    )
    parser.add_argument(
        "--engine",
        choices=("exact", "faiss"),
        help="default: faiss from a million features on where it is installed",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a contact sheet, too")
    parser.add_argument("--model", help="default: the one that made the index")
    common.add_loading(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from blip_fast.data.index import read_index
    from blip_fast.tasks.search import search

    if args.number < 1 or (args.rerank or 0) < 0:
        raise ValueError(
            f"--number is {args.number} and --rerank {args.rerank}; they must be at least 1 and 0"
        )
    index = read_index(args.index)
    of = args.of or _kind(args.query)
    judges = index.of_texts == (of == "image")
    if args.rerank and not judges:
        raise ValueError(
            f"--rerank {args.rerank}: ITM judges a text and a picture, and here both are "
            f"{'texts' if index.of_texts else 'pictures'}; leave it out"
        )
    args.model = args.model or index.facts.get("model")
    if not args.model:
        raise ValueError(f"{displayable(index.path)} names no model that made it; give --model")
    model = common.load_model(args)
    rerank = _RERANK if args.rerank is None else args.rerank
    hits = search(
        index, model, args.query, of, number=args.number, rerank=rerank, engine=args.engine
    )
    _print(hits, args.json)
    if args.html is not None:
        from blip_fast.tasks.contact_sheet import contact_sheet

        page = contact_sheet(args.query, of, hits, index.of_texts, model.image_options)
        args.html.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.html) as beside:
            beside.write_text(page, encoding="utf-8")
        print(displayable(args.html), file=sys.stderr)
    return 0 if hits else 1


def _kind(query: str) -> Literal["text", "image"]:
    try:
        return "image" if is_url(query) or Path(query).is_file() else "text"
    except OSError:  # longer than any name
        return "text"


def _print(hits: list[Hit], json: bool) -> None:
    if not json:
        print("rank", "probability", "similarity", "name", sep="\t")
    for rank, hit in enumerate(hits, 1):
        lost = hit.probability is not None and hit.probability != hit.probability
        if json:
            row: dict[str, Any] = {"rank": rank, "name": hit.name, "similarity": hit.similarity}
            if hit.probability is not None:
                row["probability"] = None if lost else hit.probability
            common.print_json(row)
            continue
        judged = "" if hit.probability is None else f"{hit.probability:.4f}"
        judged = "unreadable" if lost else judged
        print(rank, judged, f"{hit.similarity:.4f}", common.one_line(hit.name), sep="\t")
