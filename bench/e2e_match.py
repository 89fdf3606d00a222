"""Matching against transformers with the same random weights: one image with many texts, and all
pairs of many images and texts.

One image: transformers is called as its users do, with the pixels repeated for each text. All
pairs: it is given image tokens that were computed before, repeated for the texts of an image; so
are we. Texts have 9 to 16 tokens; in a batch, transformers pads them to the longest. Logits are
compared, in fp32, before anything is timed.

Where the whole would take minutes a sample of it is timed and said: transformers' cost is that of
each text, or each image, times their number. (It grows faster with texts: 32 cost 23 of our calls
by a sample of 2, 27 by one of 8, processor time of one core. A small sample favours it.) Ours is
timed whole in the first case and on some of the images in the second, whose costs add up, too.

Usage: python -m bench.e2e_match [--images 32] [--texts 32] [--size 384] [--threads 2]
    [--dtype bfloat16] [--seconds 40] [--sample-texts 8] [--sample-images 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import blip_fast
from bench.harness import Case, Timing, WrongResult, print_table, race
from bench.random_blip import beside_transformers, encoded, normalised, pictures, scaled, texts


def public_call(theirs: Any, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """One image with some texts, as transformers' users write it: [T, 2]."""
    repeated = pixels.expand(len(ids), -1, -1, -1)
    return theirs(input_ids=ids, pixel_values=repeated, attention_mask=mask).itm_score


def given_tokens(theirs: Any, tokens: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """All pairs of images, whose tokens are there, and texts: [N, T, 2]."""
    scores = []
    for image in tokens:
        states = theirs.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=image.expand(len(ids), -1, -1),
            encoder_attention_mask=torch.ones(len(ids), len(image), dtype=torch.long),
        ).last_hidden_state
        scores.append(theirs.itm_head(states[:, 0]))
    return torch.stack(scores)


def ours_given_tokens(ours: blip_fast.Blip, tokens: Tensor, some: list[str]) -> Tensor:
    return ours.match(ours.med.memory_of(tokens), some, score="logits")


def check(size: int, layers: int, images: Tensor, some: list[str]) -> None:
    """Logits in fp32, both ways of calling."""
    theirs, ours = beside_transformers(torch.float32, size, layers)
    ids, mask = encoded(ours, some)
    pixels = normalised(images)
    tokens = ours.med.vision(images)
    for name, found, expected in (
        (
            "one image",
            ours.match(images[:1], some, score="logits")[0],
            public_call(theirs, pixels[:1], ids, mask),
        ),
        (
            "all pairs",
            ours_given_tokens(ours, tokens, some),
            given_tokens(theirs, tokens, ids, mask),
        ),
    ):
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error <= 1e-4:
            raise WrongResult(f"{name}: logits differ by {error:.1e} of the largest")
        print(f"{name}: logits of {expected[..., 0].numel()} pairs agree in fp32, to {error:.0e}")


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Timing]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--sample-texts", type=int, default=8)
    parser.add_argument("--sample-images", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    images, some = pictures(args.images, args.size), texts(args.texts)
    few_texts = min(args.sample_texts, args.texts)
    few_images = min(args.sample_images, args.images)
    rows = {}
    # not inference_mode: weights made in it would be packed anew by every call
    with torch.no_grad():
        check(args.size, args.layers, images[:2], some[:2])
        theirs, ours = beside_transformers(getattr(torch, args.dtype), args.size, args.layers)
        pixels = normalised(images[:1]).to(ours.dtype)
        part = encoded(ours, some)
        short = [p[:few_texts] for p in part]
        one = Case(
            f"1 image, {args.texts} texts, {args.dtype}",
            {
                "blip_fast": lambda: ours.match(images[:1], some, score="logits"),
                "transformers": lambda: public_call(theirs, pixels, *short),
            },
            1,
            "image",
        )
        timings = race(one, args.seconds / 2, check=False)
        timings["transformers"] = scaled(timings["transformers"], args.texts / few_texts)
        print(f"transformers was timed on {few_texts} of {args.texts} texts")
        rows["one"] = timings
        print_table([(one, timings)])

        tokens = ours.med.vision(images[:few_images])
        every = Case(
            f"{args.images} images x {args.texts} texts, {args.dtype}",
            {
                "blip_fast": lambda: ours_given_tokens(ours, tokens, some),
                "transformers, given tokens": lambda: given_tokens(theirs, tokens[:1], *part),
            },
            args.images,
            "image",
        )
        measured = race(every, args.seconds / 2, check=False)
        parts = {"blip_fast": few_images, "transformers, given tokens": 1}
        rows["all"] = {n: scaled(t, args.images / parts[n]) for n, t in measured.items()}
        print(f"of {args.images} images, {few_images} were timed for us and 1 for transformers")
        print_table([(every, rows["all"])])
    return rows


if __name__ == "__main__":
    main()
