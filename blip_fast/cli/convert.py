"""`blip-fast convert`: a checkpoint from one layout to another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from blip_fast.cli import common
from blip_fast.config import KINDS
from blip_fast.data import displayable
from blip_fast.med.weights import build, read_checkpoint, write_checkpoint

_LAYOUTS = ("blip_fast", "transformers", "salesforce")
_LISTED = 20


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers,
        "convert",
        "Write a checkpoint in another layout.",
        "Every tensor is checked on the way; weights are written as float32.",
    )
    parser.add_argument("source", metavar="SOURCE", help="anything that --model takes elsewhere")
    parser.add_argument("output", metavar="OUT", type=Path, help="a folder")
    parser.add_argument("--layout", choices=_LAYOUTS, default=_LAYOUTS[0])
    parser.add_argument("--kind", choices=KINDS, help="the part of a pretrained checkpoint to keep")
    parser.add_argument(
        "--vocabulary", type=Path, help="a BERT vocab.txt, for checkpoints that carry none"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    checkpoint = read_checkpoint(args.source, kind=args.kind, vocabulary=args.vocabulary)
    med = build(checkpoint, dtype=torch.float32, device="cpu")
    written = write_checkpoint(med, checkpoint.tokenizer, args.output, args.layout)
    print(f"source      {checkpoint.source}")
    print(f"layout      {checkpoint.layout} -> {args.layout}")
    print(f"kind        {checkpoint.config.kind}")
    print(f"parameters  {sum(p.numel() for p in med.parameters()):,}")
    print(f"sha256      {checkpoint.sha256}")
    aside = checkpoint.left_aside
    print(f"left aside  {len(aside)} tensors" if aside else "left aside  nothing")
    for name in aside[:_LISTED]:
        print(f"  {name}")
    if len(aside) > _LISTED:
        print(f"  and {len(aside) - _LISTED} more")
    print(f"written to  {displayable(written.absolute())}")
    return 0
