"""How the decoders of picture files differ from Pillow, the reference, and how fast they are.

For each decoder that is installed: how many files it read itself, how many Pillow read in its
place and how many failed; how far its pixels are from Pillow's in grey levels, of the files it
read; and how far that moves a model's ITC embedding, with `--model`, by default the small trained
one of the package. Statuses must be those of Pillow for every file, or nothing is printed.

Then all take turns on the plain JPEGs, with the reading of the files, in images a second.

Usage: python -m bench.e2e_decode [FILE OR FOLDER ...] [--size 384] [--device cuda] [--workers 1]
       [--model NAME OR PATH] [--seconds 30] [--limit 80]

Without files: the photos and the hostile images of ../shared/data.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

import blip_fast
from bench.harness import Case, print_table, race
from blip_fast.images import (
    ON_DEVICE,
    Decoder,
    ImageOptions,
    Picture,
    find_images,
    read_pictures,
    stack,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDERS = (DATA / "coco_train80" / "images", DATA / "image_faults")

# Grey levels by which a value of a timed result may differ: what a filter does at the edge of a
# picture; see tests/images/test_device_decoders.py for the bounds within.
ALLOWED = 16 / 255


def installed(device: str) -> dict[str, ImageOptions]:
    """The options of every decoder that can be used here, Pillow's first."""
    found = {}
    for name in sorted(get_args(Decoder), key=lambda name: name != "pillow"):
        if name == "simplejpeg":  # it is what "auto" takes for JPEG
            continue
        try:
            found[name] = ImageOptions(decoder=name, device=device if name in ON_DEVICE else "cpu")
        except ValueError as error:
            print(f"{name} is left out: {error}")
    return found


def compare(name: str, pictures: Sequence[Picture], references: Sequence[Picture]) -> None:
    """Print how the pixels differ, of the files that this decoder read itself."""
    for picture, reference in zip(pictures, references, strict=True):
        outcome, expected = ((p.status, p.width, p.height) for p in (picture, reference))
        assert outcome == expected, f"{name}, {picture.name}: {outcome}, Pillow: {expected}"
    own = "simplejpeg" if name == "auto" else name
    pairs = [
        (picture.pixels.cpu().int(), reference.pixels.int())
        for picture, reference in zip(pictures, references, strict=True)
        if picture.pixels is not None and reference.pixels is not None and picture.decoder == own
    ]
    counts = Counter(picture.decoder or "failed" for picture in pictures)
    others = ", ".join(f"{who} {n}" for who, n in sorted(counts.items()) if who != own)
    error = torch.stack([(ours - theirs).abs() for ours, theirs in pairs]).float()
    inside = error[..., 2:-2, 2:-2]
    print(
        f"{name:11} read {len(pairs)} ({others}); grey levels from Pillow: "
        f"mean {error.mean():.4f}, worst image {error.mean((1, 2, 3)).max():.4f}, "
        f"largest {error.max():.0f}, without the "
        f"outer two rows {inside.max():.0f}; over 1: {(error > 1).float().mean():.2e}"
    )


def embeddings(model: blip_fast.Blip, options: ImageOptions, files: Sequence[Path]) -> torch.Tensor:
    """[N, D], of unit length, of files that can be read."""
    reads = replace(options, size=model.image_size)
    return model.embed_images(stack(list(read_pictures(files, reads))).cpu()).float()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--device", default="cpu", help="of dali and nvimgcodec")
    parser.add_argument("--workers", type=int, default=1, help="threads that read and decode")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--limit", type=int, default=80, help="plain JPEGs that are timed")
    arguments = parser.parse_args()
    files = [
        file
        for given in arguments.files or [folder for folder in FOLDERS if folder.is_dir()]
        for file in (find_images(given) if given.is_dir() else [given])
    ]
    if not files:
        raise SystemExit("there are no pictures; give files or folders")
    decoders = {
        name: replace(options, size=arguments.size)
        for name, options in installed(arguments.device).items()
    }
    read = {name: list(read_pictures(files, options)) for name, options in decoders.items()}
    references = read["pillow"]
    print(f"{len(files)} files to {arguments.size} x {arguments.size}")
    for name in decoders:
        if name != "pillow":
            compare(name, read[name], references)

    plain = [
        file
        for file, picture in zip(files, read["auto"], strict=True)
        if picture.decoder == "simplejpeg"
    ][: arguments.limit]
    model = blip_fast.load(arguments.model, dtype="float32", device="cpu")
    truth = embeddings(model, decoders["pillow"], plain)
    for name, options in decoders.items():
        cosine = (embeddings(model, options, plain) * truth).sum(1)
        print(
            f"{name:11} ITC embedding by {arguments.model}, {model.image_size} px: cosine to that "
            f"of Pillow's pixels {cosine.mean():.6f}, lowest {cosine.min():.6f}"
        )
        assert cosine.min() > 0.99, f"{name} is not the same picture to the model"

    contenders = {
        name: lambda options=options: stack(
            list(read_pictures(plain, options, arguments.workers))
        ).float()
        for name, options in sorted(decoders.items(), key=lambda item: item[0] != "auto")
    }
    title = f"{len(plain)} JPEGs, {arguments.device}, {arguments.workers} threads"
    case = Case(title, contenders, len(plain), "image", ALLOWED)
    print_table([(case, race(case, arguments.seconds))])


if __name__ == "__main__":
    main()
