"""`blip-fast bench`: time a room against plain PyTorch, with the stopwatch of the checkout.

The benches are not in a wheel: they race the package against other libraries and write results
into the checkout. This verb finds them beside the package, as an editable install has them.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import blip_fast
from blip_fast.cli import common


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "bench",
        "Time a room of the kernels against plain PyTorch.",
        "Contenders take turns, and results are compared before any is timed. Only in a checkout.",
    )
    parser.add_argument("room", metavar="ROOM", help="as `blip-fast info` lists them")
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How to measure; the benches take the same options when they run as scripts."""
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case; default 2")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    parser.add_argument(
        "--cold", action="store_true", help="empty the caches before each turn; a GPU always does"
    )
    parser.add_argument("--save", action="store_true", help="append the rows to bench/results/")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    bench = import_bench()
    module = f"bench_{args.room}"
    known = sorted(path.stem.removeprefix("bench_") for path in bench.glob("bench_*.py"))
    if args.room not in known:
        raise ValueError(f"there is no bench {args.room}; there are {', '.join(known)}")
    cases = import_module(f"bench.{module}").cases()
    import_module("bench.harness").run(args.room, cases, args)
    return 0


def import_bench() -> Path:
    """Make `bench` of this checkout importable, and nothing else beside it.

    Returns:
        its folder.

    Raises:
        ValueError: where the package was installed without the checkout.
    """
    folder = Path(blip_fast.__file__).resolve().parents[1] / "bench"
    if not (folder / "harness.py").is_file():
        raise ValueError(
            f"there are no benches in {folder}: a wheel does not carry them. In a checkout of the "
            "sources, run `make test` once (or pip install -e .), then .venv/bin/blip-fast bench"
        )
    if list(getattr(sys.modules.get("bench"), "__path__", ())) != [str(folder)]:
        where = [str(folder)]
        spec = spec_from_file_location(
            "bench", folder / "__init__.py", submodule_search_locations=where
        )
        assert spec is not None and spec.loader is not None
        sys.modules["bench"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return folder
