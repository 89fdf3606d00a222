"""The command line: one file for each verb, which parses, builds a config and calls a function."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from blip_fast import __version__
from blip_fast.cli import (
    answer,
    bench,
    capfilt,
    caption,
    check,
    convert,
    demo,
    embed,
    info,
    match,
    report,
    scenes,
    search,
    train,
    tune,
)
from blip_fast.cli.common import modern_spelling

_VERBS = (
    caption, match, answer, embed, search, capfilt, tune, check, scenes, train, report, convert,
    info, bench, demo,
)  # fmt: skip
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0 where something worked, 1 where nothing did, 130 where it was
        interrupted. Usage errors leave through argparse with 2.
    """
    args = build_parser().parse_args(modern_spelling(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):  # never the locale: names and captions are Unicode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            return args.run(args)
        except BrokenPipeError:  # the reader of stdout has enough, as `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (ValueError, OSError, ImportError) as error:
            print(f"blip-fast: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("blip-fast: interrupted", file=sys.stderr)
            return _INTERRUPTED


def program() -> NoReturn:
    """The installed command: `main`, and gone at once where it was interrupted.

    Whoever presses Ctrl-C again, while a batch is being finished, leaves threads in the middle of
    it; Python would take its objects away from under them, and crash.
    """
    code = main()
    if code == _INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blip-fast",
        description="Caption, match, answer, embed and filter pictures with BLIP.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"blip-fast {__version__}")
    subparsers = parser.add_subparsers(metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add_parser(subparsers)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, UserWarning):
        print(f"blip-fast: warning: {message}", file=sys.stderr)
