"""What a caption and an answer cost: seconds against tokens, images, beams, samples, candidates.

Cost should grow with tokens and images, and by less than in proportion with all the rest: an image
is seen once and its memory read by all. Base size, 384 px, random weights; a caption's call begins
with pixels. Beside the table, `--svg` draws every curve with the line of what would grow in
proportion.

Usage: python -m bench.e2e_cost [--images 2] [--size 384] [--turns 3] [--threads 2]
           [--dtype bfloat16] [--only beams samples tokens images candidates]
           [--csv FILE] [--svg FILE]
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import blip_fast
from bench.chart import Curve, draw
from bench.e2e_answer import Problem
from bench.harness import Case, race
from bench.machine import git_sha, machine_kind
from bench.random_blip import captioner, pictures

HEADER = ("against", "number", "images", "median_s", "low_s", "high_s", "times_the_first")
TOKENS = 4, 8, 16, 32
BEAMS = 1, 2, 3, 4, 6
SAMPLES = 1, 2, 4, 8
IMAGES = 1, 2, 4
CANDIDATES = 1, 16, 32, 64, 128, 256
OF = {
    "beams": "beams, 16 new tokens",
    "samples": "nucleus samples of 16 new tokens",
    "tokens": "new tokens, greedy",
    "images": "images, 3 beams, 16 new tokens",
    "candidates": "candidates scored whole, of 1,000",
}
PROMPT = "w1 w2 w3"
BEGINNING = 1 + 3  # [DEC] and the prompt, which lengths count


@dataclass(frozen=True)
class Point:
    """A call to time, and the new tokens that each of its texts must have."""

    number: int
    images: int
    call: Callable[[], Tensor]
    tokens: int | None = None


def captions(model: blip_fast.Blip, images: Tensor, only: Sequence[str]) -> Iterator[list[Point]]:
    """The curves of captioning that are asked for, in the order of `OF`."""

    def point(number: int, some: Tensor, tokens: int = 16, **settings: Any) -> Point:
        length = BEGINNING + tokens
        asked = {"max_length": length, "min_length": length - 1, **settings}

        def call() -> Tensor:
            rows = model.caption(some, PROMPT, **asked)
            return torch.tensor([len(text.token_ids) for row in rows for text in row])

        return Point(number, len(some), call, tokens)

    plans: dict[str, list[Point]] = {
        "beams": [point(n, images, num_beams=n) for n in BEAMS],
        "samples": [point(n, images, num_captions=n, top_p=0.9) for n in SAMPLES],
        "tokens": [point(n, images, n, num_beams=1) for n in TOKENS],
        "images": [point(n, images.repeat(n, 1, 1, 1)[:n]) for n in IMAGES],
    }
    yield from (plan for name, plan in plans.items() if name in only)


def answers(dtype: torch.dtype, questions: int) -> list[Point]:
    """Ranking of answers; image and question are encoded before."""
    problem = Problem(dtype, questions, 1000)
    return [Point(k, questions, problem.ours(k)) for k in CANDIDATES]


def timed(points: Sequence[Point], title: str, turns: int) -> Curve:
    """Time the points of a curve in turns, so that a machine that slows down slows them all."""
    for point in points:
        lengths = point.call()  # also warms up
        if point.tokens is not None and set(lengths.tolist()) != {BEGINNING + point.tokens}:
            raise ValueError(f"{title}, {point.number}: texts have {lengths.tolist()} tokens")
    calls = {str(point.number): point.call for point in points}
    # Results of different numbers are different; their lengths were checked above.
    timings = race(Case(title, calls, 1, "image"), 0, check=False, turns_at_least=turns)
    found = [timings[str(point.number)] for point in points]
    return Curve(
        title,
        [point.number for point in points],
        [t.median for t in found],
        [t.low for t in found],
        [t.high for t in found],
    )


def rows_of(name: str, points: Sequence[Point], curve: Curve) -> Iterator[list[str]]:
    for place, point in enumerate(points):
        figures = curve.medians[place], curve.lows[place], curve.highs[place]
        times = f"{curve.medians[place] / curve.medians[0]:.2f}"
        yield [name, str(point.number), str(point.images), *(f"{s:.4f}" for s in figures), times]


def main(argv: Sequence[str] | None = None) -> dict[str, Curve]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12, help="of the captioner")
    parser.add_argument("--turns", type=int, default=3, help="at least, of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", default=list(OF), choices=OF, metavar="CURVE")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    images, dtype = pictures(args.images, args.size), getattr(torch, args.dtype)
    names = [name for name in OF if name in args.only]
    curves: dict[str, Curve] = {}
    table: list[list[str]] = []
    print(*HEADER, sep=",")
    # not inference_mode: weights made in it would be packed anew by every call
    with torch.no_grad():
        model = captioner(dtype, args.size, args.layers)
        of_captions = captions(model, images, names)
        for name in names:
            asked = answers(dtype, args.images) if name == "candidates" else next(of_captions)
            curves[name] = timed(asked, OF[name], args.turns)
            for row in rows_of(name, asked, curves[name]):
                table.append(row)
                print(*row, sep=",", flush=True)
    facts = f"{machine_kind(torch.device('cpu'))}, {args.threads} threads, {args.dtype}, "
    facts += f"{args.images} images a call, commit {git_sha() or 'unknown'}"
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([HEADER, *table])
    if args.svg:
        note = f"{facts}; dashed: in proportion to the number"
        args.svg.write_text(draw(list(curves.values()), note), encoding="utf-8")
    return curves


if __name__ == "__main__":
    main()
