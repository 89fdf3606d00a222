"""The second stage of retrieval: blip_fast against the reference's algorithm, same weights.

First, in fp32, a small collection is ranked by both from end to end: scores must agree, and recall
of planted answers must be identical in both directions. Then ITM's work on the large collection is
timed: k candidates for each image and each text. Both start from image tokens.

Unless --whole is given a sample of that work is timed, because the whole takes the reference
hours: for us some images with all the pairs that they are in, for the reference one query in each
direction with some of its candidates. Costs add up, so the sample is scaled; before it is timed,
the logits of the reference's sample are compared with ours, in fp32.

Last, a collection is searched in a process of its own under a budget of bytes for what is held of
images: the peak above the weights, and what was held at most, which must be within the budget.

Usage: python -m bench.e2e_retrieval [--images 200] [--texts 1000] [--k 32] [--size 384]
    [--threads 2] [--dtype bfloat16] [--seconds 30] [--sample-images 1] [--sample-pairs 4]
    [--check-images 4] [--check-texts 8] [--budget-mib 256] [--held-images 12] [--whole]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

import blip_fast
from bench.e2e_pretrain import resident
from bench.harness import Case, Timing, WrongResult, print_table, race
from bench.peers.plain_retrieval import LENGTH, PlainRetrieval
from bench.random_blip import CLS, encoded, matcher, pictures, scaled, texts
from blip_fast.evaluate.ranking import recall
from blip_fast.med import blip as med
from blip_fast.med.weights import ours_to_salesforce
from blip_fast.tasks.retrieve import Ranking

KS = 1, 5, 10


def peer(ours: blip_fast.Blip, tokens: Tensor, some: list[str]) -> PlainRetrieval:
    """The reference's algorithm over our weights."""
    named = {name: p.detach() for name, p in ours.med.named_parameters()}
    state = ours_to_salesforce(named, ours.config)
    return PlainRetrieval(state, tokens, *encoded(ours, some, LENGTH))


def check(args: argparse.Namespace) -> None:
    """Rank a small collection by both, in fp32."""
    ours = matcher(torch.float32, args.size, args.layers)
    images, some = pictures(args.check_images, args.size), texts(args.check_texts)
    k = min(args.k, (args.check_images + 1) // 2)
    theirs = peer(ours, ours.med.vision(images), some)
    expected = theirs.evaluate(theirs.cosines(CLS), k)
    found = ours.retrieve(images, some, k=k, max_length=LENGTH)
    right_of_text = [[t % args.check_images] for t in range(args.check_texts)]
    right_of_image = [
        [t for t, right in enumerate(right_of_text) if right == [i]]
        for i in range(args.check_images)
    ]
    for name, ranking, scores, right in (
        ("texts of images", found.texts, expected[0], right_of_image),
        ("images of texts", found.images, expected[1], right_of_text),
    ):
        best = scores.topk(k)
        error = ((ranking.scores - best.values).abs().max() / best.values.abs().max()).item()
        if not error <= 1e-4:
            raise WrongResult(f"{name}: scores differ by {error:.1e} of the largest")
        recalls = [recall(r, right, KS) for r in (ranking, Ranking(best.indices, best.values))]
        if recalls[0] != recalls[1]:
            raise WrongResult(f"{name}: recall is {recalls[0]}, the reference's {recalls[1]}")
        share = ", ".join(f"R@{at} {value:.3f}" for at, value in recalls[0].items())
        print(f"{name}, {len(scores)} queries, k={k}: scores agree to {error:.0e}; {share}, both")


def wanted(images: int, some: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates [N, k] and [T, k] of random features, and their pairs [P, 2], each once."""
    generator = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(n, 256, generator=generator)) for n in (images, some)]
    cosines = features[0] @ features[1].T
    to_texts = cosines.topk(min(k, some)).indices
    to_images = cosines.T.topk(min(k, images)).indices
    by_image = torch.stack([torch.arange(images)[:, None].expand_as(to_texts), to_texts], -1)
    by_text = torch.stack([to_images, torch.arange(some)[:, None].expand_as(to_images)], -1)
    pairs = torch.cat([by_image.flatten(0, 1), by_text.flatten(0, 1)]).unique(dim=0)
    return to_texts, to_images, pairs


class Work:
    """The timed part of the second stage, for both."""

    def __init__(self, args: argparse.Namespace, dtype: torch.dtype) -> None:
        self.ours = matcher(dtype, args.size, args.layers)
        self.texts = texts(args.texts)
        self.to_texts, self.to_images, pairs = wanted(args.images, args.texts, args.k)
        counts = pairs[:, 0].bincount(minlength=args.images)
        typical = (counts - counts.double().mean()).abs().argsort(stable=True)
        self.seen = sorted(typical[: args.images if args.whole else args.sample_images].tolist())
        self.pairs = pairs[torch.isin(pairs[:, 0], torch.tensor(self.seen))]
        self.our_scale = args.images / len(self.seen)
        self.number = len(pairs)
        self.whole, self.sample = args.whole, min(args.sample_pairs, args.k)
        # The reference's sample reads one image and, for a text, this many; all have tokens.
        needed = range(args.images) if self.whole else [*self.seen, *range(self.sample)]
        self.places = sorted(set(needed))
        held = pictures(len(self.places), args.size)
        tokens = torch.cat([self.ours.med.vision(image[None]) for image in held])
        self.peer = peer(self.ours, tokens, self.texts)

    def ours_call(self) -> Tensor:
        """Logits [P], image by image: a memory is made from the tokens, used and dropped."""
        results = []
        for place in self.seen:
            own = self.pairs[self.pairs[:, 0] == place, 1].tolist()
            tokens = self.peer.tokens[self.places.index(place)]
            memory = self.ours.med.memory_of(tokens[None])
            some = [self.texts[t] for t in own]
            results.append(self.ours.match(memory, some, score="logit")[0])
        return torch.cat(results)

    def of_image(self) -> Tensor:
        """The reference's queries for images, or a part of one."""
        if self.whole:
            rows = enumerate(self.to_texts)
            return torch.stack([self.peer.of_image(image, row) for image, row in rows])
        place = self.seen[0]
        return self.peer.of_image(self.places.index(place), self.to_texts[place, : self.sample])

    def of_text(self) -> Tensor:
        if self.whole:
            rows = enumerate(self.to_images)
            return torch.stack([self.peer.of_text(text, row) for text, row in rows])
        return self.peer.of_text(0, torch.arange(self.sample))

    def compare(self) -> None:
        """Hold the reference's sample against ours, one candidate of each after the other."""
        place, sample = self.seen[0], self.sample
        rows = [self.places.index(place)] * sample + list(range(sample))
        columns = [*self.to_texts[place, :sample].tolist(), *[0] * sample]
        used = sorted(set(columns))
        memory = self.ours.med.memory_of(self.peer.tokens)
        pairs = [(row, used.index(column)) for row, column in zip(rows, columns, strict=True)]
        ours = self.ours.match(memory, [self.texts[t] for t in used], pairs, score="logit")
        expected = torch.cat([self.of_image()[:sample], self.of_text()[:sample]])
        error = ((ours - expected).abs().max() / expected.abs().max()).item()
        spread = (expected.std() / expected.abs().max()).item()
        if not error <= 1e-4 < 0.1 * spread:
            raise WrongResult(f"logits differ by {error:.1e}, and among each other by {spread:.1e}")
        print(f"logits of {len(expected)} sampled pairs agree in fp32, to {error:.0e}")


def timed(args: argparse.Namespace) -> dict[str, Timing]:
    if not args.whole:
        Work(args, torch.float32).compare()
    work = Work(args, getattr(torch, args.dtype))
    theirs = work.to_texts.numel() + work.to_images.numel()
    print(f"{work.number} pairs for us, {theirs} for the reference, which judges some twice")
    case = Case(
        f"rerank {args.images} x {args.texts}, k={args.k}, {args.dtype}",
        {"blip_fast": work.ours_call, "image": work.of_image, "text": work.of_text},
        args.images,
        "image",
    )
    turns = race(case, args.seconds, check=False)
    times = (1.0, 1.0) if args.whole else (args.k / work.sample,) * 2
    if not args.whole:
        print(
            f"ours is timed on {len(work.seen)} images with {len(work.pairs)} of the pairs, the "
            f"reference on {work.sample} of {args.k} candidates of one query in each direction"
        )
        times = times[0] * args.images, times[1] * args.texts
    image, text = (scaled(turns[n], by) for n, by in zip(("image", "text"), times, strict=True))
    both = Timing(tuple(a + b for a, b in zip(image.turns, text.turns, strict=True)))
    result = {"blip_fast": scaled(turns["blip_fast"], work.our_scale), "reference": both}
    print_table([(case, result)])
    return result


def held(args: argparse.Namespace) -> tuple[int, int]:
    """Search under a budget: the peak of the process above what was there, and what was held."""
    ours = matcher(getattr(torch, args.dtype), args.size, args.layers)
    images, some = pictures(args.held_images, args.size), texts(4)
    ours.retrieve(images[:1], some, k=1)  # what is made once is made here
    alive: list[weakref.ref[Tensor]] = []
    most, project = 0, med.project_memory

    def counted(reader: med.TextTransformer, tokens: Tensor) -> Tensor:
        nonlocal most
        made = project(reader, tokens)
        alive.append(weakref.ref(made))
        most = max(most, sum(t.nbytes for ref in alive if (t := ref()) is not None))
        return made

    med.project_memory = counted
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    ours.retrieve(images, some, k=args.held_images, memory_budget=args.budget_mib << 20)
    return resident("VmHWM") - before, most


def report_held(args: argparse.Namespace, argv: Sequence[str]) -> None:
    command = [sys.executable, "-m", "bench.e2e_retrieval", *argv, "--held"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, most = (int(word) for word in done.stdout.split()[-2:])
    budget = args.budget_mib << 20
    if most > budget:
        raise WrongResult(f"{most} bytes of memories were held, the budget is {budget}")
    print(
        f"{args.held_images} images under a budget of {args.budget_mib} MiB: memories of at most "
        f"{most / 2**20:.0f} MiB held, peak of the process {peak / 2**20:.0f} MiB above the weights"
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    for name, value in (
        ("images", 200), ("texts", 1000), ("k", 32), ("size", 384), ("layers", 12),
        ("threads", torch.get_num_threads()), ("sample-images", 1), ("sample-pairs", 4),
        ("check-images", 4), ("check-texts", 8), ("budget-mib", 256), ("held-images", 12),
    ):  # fmt: skip
        made.add_argument(f"--{name}", type=int, default=value)
    made.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    made.add_argument("--seconds", type=float, default=30.0)
    made.add_argument("--whole", action="store_true", help="time all of the work")
    made.add_argument("--held", action="store_true", help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Timing]:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    # not inference_mode: weights made in it would be packed anew by every call
    with torch.no_grad():
        if args.held:
            print(*held(args))
            return {}
        check(args)
        result = timed(args)
    report_held(args, argv)
    return result


if __name__ == "__main__":
    main()
