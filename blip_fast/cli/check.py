"""`blip-fast check`: what is wrong with a source of pictures, and where."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_fast.cli import common

if TYPE_CHECKING:
    from blip_fast.data.check import Check

_LISTED = 10  # faults of a kind on the terminal


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "check",
        "Tell what is damaged in a source of pictures, and which are there twice.",
        "Every picture is decoded. Exit code 0: no fault, 1: faults (duplicates are "
        "none), or no pictures.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="folder, tar shards, parquet or manifest, as for capfilt"
    )
    parser.add_argument("--output", type=Path, help="write a page, as check.html")
    parser.add_argument(
        "--no-duplicates",
        dest="duplicates",
        action="store_false",
        help="do not look for equal pictures: less memory",
    )
    parser.add_argument(
        "--image-root", help="what relative paths of manifests and tables begin below"
    )
    common.add_max_pixels(parser)
    common.add_recursive(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from blip_fast.data.check import check_source
    from blip_fast.data.checkpage import render_check
    from blip_fast.data.files import replacing
    from blip_fast.data.web import open_web
    from blip_fast.images import ImageOptions

    page = args.output  # looked at before hours of reading
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise ValueError(f"--output {page} must be a file in a folder that is there, as check.html")
    options = None if args.max_pixels is None else ImageOptions(max_pixels=args.max_pixels)
    source = open_web(args.source, image_root=args.image_root, recursive=args.recursive)
    with common.progress_bar(source.count) as bar:
        check = check_source(
            source, options=options, duplicates=args.duplicates, progress=bar.update
        )
    if args.json:
        for fault in check.listed:
            common.print_json({"fault": fault.to_dict()})
        common.print_json(check.to_dict())
    else:
        _print(check)
    if args.output is not None:
        with replacing(args.output) as temporary:
            temporary.write_text(render_check(check), encoding="utf-8")
        print(os.fspath(args.output.absolute()), file=sys.stderr if args.json else sys.stdout)
    return 0 if check.clean and check.count else 1


def _print(check: Check) -> None:
    from blip_fast.data.check import reasons

    print(f"{check.readable} of {check.count} pictures can be read, {check.without_text} no text")
    for kind, faults in reasons(check).items():
        print(f"{kind}: {check.faults[kind]}")
        for fault in faults[:_LISTED]:
            byte = "" if fault.offset is None else f" at byte {fault.offset}"
            name = common.one_line(fault.key or fault.where)
            print(f"  {name!r}{byte}: {common.one_line(fault.what)}")
        if len(faults) > _LISTED:
            print(f"  and {check.faults[kind] - _LISTED} more")
    if check.exact or check.alike:
        print(
            f"{check.repeated} exact copies in {len(check.exact)} groups, {len(check.alike)} "
            "groups that look the same"
        )
    if not check.count:
        print(f"there are no pictures in {check.source.name}")
        return
    print("no faults" if check.clean else f"{check.faults.total()} faults")
