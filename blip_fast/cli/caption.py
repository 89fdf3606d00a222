"""`blip-fast caption`: a caption beside every picture."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from blip_fast.cli import common
from blip_fast.cli.tally import Tally
from blip_fast.data import (
    EXISTING,
    EXTENSIONS,
    Found,
    combine,
    displayable,
    is_url,
    read_sidecar,
    refuse_clashes,
    stable_seed,
    write_sidecar,
)
from blip_fast.decoding.options import EarlyStopping
from blip_fast.images import Status
from blip_fast.tasks.captions import Generated

_EARLY_STOPPING: dict[str, EarlyStopping] = {"false": False, "true": True, "never": "never"}

# Words of an older captioning script, for "write anew" and "leave what is there".
_OLD_EXISTING = {"ignore": "overwrite", "copy": "skip"}


@dataclass(frozen=True)
class Job:
    """A picture to caption, where its text goes (None: nowhere), and what stands there already."""

    found: Found
    target: Path | None = None
    old: str = ""


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "caption",
        "Write a caption beside every picture.",
        "A picture NAME.jpg gets NAME.txt, in UTF-8; several captions go one to a line.",
    )
    common.add_inputs(parser)
    common.add_model(parser, common.CAPTIONER, "--caption-weights")
    parser.add_argument("--output", type=Path, help="a folder for the captions, instead of beside")
    common.add_json(parser)
    parser.add_argument(
        "--caption-extension", "--caption-extention", choices=EXTENSIONS, default=EXTENSIONS[0]
    )
    parser.add_argument(
        "--existing",
        type=lambda word: _OLD_EXISTING.get(word, word),
        choices=EXISTING,
        default="skip",
        help="what to do where a caption is there already; default skip",
    )
    parser.add_argument("--dry-run", action="store_true", help="print captions, write nothing")
    parser.add_argument("--prefix", default="", help="put before every caption, as it is")
    parser.add_argument("--postfix", default="", help="put after every caption, as it is")
    common.add_batch_size(parser)
    _add_search(parser)
    parser.set_defaults(run=run)


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how captions are written")
    group.add_argument("--prompt", default="a picture of ", help="what captions go on from")
    group.add_argument("--num-captions", type=int, default=1, help="for each picture")
    group.add_argument("--num-beams", type=int, default=3, help="1 is greedy; default 3")
    group.add_argument(
        "--top-p", type=float, help="sample, from the likeliest words of this much probability"
    )
    group.add_argument(
        "--top-k", type=int, help="sample, from so many likeliest words; default 50, 0 is all"
    )
    group.add_argument(
        "--temperature", type=float, help="of sampling; default 1, below it less is risked"
    )
    group.add_argument("--seed", type=int, default=0, help="of sampling; default 0")
    group.add_argument(
        "--min-length", type=int, default=10, help="tokens, with the prompt; default 10"
    )
    group.add_argument(
        "--max-length", type=int, default=30, help="tokens, with the prompt; default 30"
    )
    group.add_argument(
        "--repetition-penalty", type=float, help="1 is none; default: 1.1 when sampling, else 1"
    )
    group.add_argument(
        "--length-penalty",
        type=float,
        default=1.0,
        help="above 0 beams of more words do better; default 1",
    )
    group.add_argument(
        "--early-stopping",
        choices=_EARLY_STOPPING,
        default="false",
        help="when beams stop, as in transformers; default false",
    )
    group.add_argument(
        "--forbid",
        action="append",
        default=[],
        metavar="PHRASE",
        help="never write this word or phrase; may be given several times",
    )
    # An older script's list with commas.
    group.add_argument(
        "--fail-phrases",
        dest="forbid",
        type=lambda words: [word.strip() for word in words.split(",") if word.strip()],
        action="extend",
        help=argparse.SUPPRESS,
    )
    group.add_argument(
        "--slots", type=int, help="pictures written about at once; default: what fits 512 MB"
    )
    # Older scripts sample unless this is given, and then ignore --top-p.
    group.add_argument("--beam-search", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    tally = Tally(args.json)
    search = _search(args)
    jobs = _plan(common.find_inputs(args), args, tally)
    if not jobs:
        return tally.report("captioned")
    model = common.load_model(args)
    tally.start()
    outcomes = model.caption_stream(
        [job.found.source for job in jobs],
        args.prompt,
        seed=[stable_seed(job.found.key, args.seed) for job in jobs],
        batch_size=args.batch_size,
        slots=args.slots,
        **search,
    )
    with common.progress_bar(len(jobs)) as bar:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.status is Status.SUCCESS:
                _deliver(job, outcome.texts, args, tally)
            else:
                tally.fail(job.found.name, outcome.status, outcome.error)
            bar.update(1)
    return tally.report("captioned")


def _search(args: argparse.Namespace) -> dict[str, Any]:
    search = {
        "num_captions": args.num_captions,
        "num_beams": args.num_beams,
        "top_p": None if args.beam_search else args.top_p,
        "min_length": args.min_length,
        "max_length": args.max_length,
        "repetition_penalty": args.repetition_penalty,
        "length_penalty": args.length_penalty,
        "early_stopping": _EARLY_STOPPING[args.early_stopping],
        "forbidden": args.forbid,
    }
    if args.top_k is not None and not args.beam_search:
        search |= {"top_k": args.top_k, "top_p": 1.0 if args.top_p is None else args.top_p}
    if args.temperature is not None:
        if search["top_p"] is None:
            raise ValueError(
                f"--temperature {args.temperature} is of sampling, and beams do not sample; give "
                "--top-p or --top-k, too"
            )
        search["temperature"] = args.temperature
    return search


def _plan(found: Sequence[Found], args: argparse.Namespace, tally: Tally) -> list[Job]:
    """What is left to do; everything that can be refused is refused before a model is loaded."""
    if args.json and args.output is None:
        return [Job(one) for one in found]
    targets = [_target(one, args) for one in found]
    refuse_clashes(zip(targets, (one.name for one in found), strict=True))
    if not args.dry_run:
        _check_writable(targets)
    jobs = []
    for one, target in zip(found, targets, strict=True):
        try:
            old = read_sidecar(target) if target.exists() else ""
        except ValueError as error:
            if args.existing in ("append", "prepend"):
                tally.fail(one.name, Status.FAILED_TO_READ, str(error))
                continue
            old = str(error)  # there is something, whatever it says
        if old and args.existing == "skip":
            tally.skipped += 1
        else:
            jobs.append(Job(one, target, old))
    return jobs


def _target(found: Found, args: argparse.Namespace) -> Path:
    """The sidecar of a picture."""
    if args.output is not None:
        path = urlsplit(found.key).path if is_url(found.source) else found.key
        name = PurePosixPath(unquote(path)).name if is_url(found.source) else path
        return (args.output / (name or "picture")).with_suffix(args.caption_extension)
    if is_url(found.source):
        raise ValueError(f"there is no folder beside {found.name}; give --output or --json")
    return Path(found.source).with_suffix(args.caption_extension)


def _check_writable(targets: Sequence[Path]) -> None:
    for folder in {target.parent for target in targets}:
        nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(nearest, os.W_OK):
            raise ValueError(
                f"cannot write captions into {displayable(folder)}; give --output FOLDER"
            )


def _deliver(job: Job, texts: Sequence[Generated], args: argparse.Namespace, tally: Tally) -> None:
    """Write and print the captions of a picture."""
    written = [text for text in texts if text.text.strip()]
    if not written:
        tally.fail(job.found.name, Status.EMPTY_TEXT, "the model wrote an empty caption")
        return
    captions = [args.prefix + text.text + args.postfix for text in written]
    if job.target is not None and not args.dry_run:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_sidecar(job.target, combine(job.old, "\n".join(captions), args.existing))
    if args.json:
        common.print_json(_result(job, captions, written))
    elif args.dry_run:
        print(f"{job.found.name}\t{common.one_line(captions[0])}")
    tally.done += 1


def _result(job: Job, captions: Sequence[str], written: Sequence[Generated]) -> dict[str, Any]:
    listed = [
        {
            "caption": caption,
            "log_probability": text.log_probability,
            "truncated": text.truncated,
            "degenerate": text.degenerate,
        }
        for caption, text in zip(captions, written, strict=True)
    ]
    result = {"path": job.found.name, **listed[0]}
    return result if len(listed) == 1 else {**result, "captions": listed}
