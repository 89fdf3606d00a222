"""Hours for CapFilt over the paper's 129 million web pictures on 1, 8 and 64 GPUs: an estimate.

Each stage has a rate, and each rate says where it comes from. Those of a run (`--run OUT`, or
`--rates FILE`) are measured, of that machine and those models. What no run tells is computed: the
models' work on a GPU from their operations and bytes at shares of an H200's peaks that others have
published (the best anyone has printed, not ours); decoding and the pipeline's own work are timed
here, on one core.

Models of one GPU take turns, so their times add up. Everything else overlaps with them, and the
slowest is the limit. Shared storage is one for all machines; the rest grows with the GPUs.

Usage: python -m bench.paper_estimate [--preset base] [--captions 1] [--tokens 16] [--cores 16]
           [--run OUT] [--rates rates.json] [--storage 10] [--data ../shared/data]
       rates.json: {"captioner": {"images_per_second": 900, "source": "e2e on an H200"}, ...}
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_fast.config import BlipConfig, preset
from blip_fast.images import ImageOptions, read_picture

PICTURES = 129_000_000
GPUS = (1, 8, 64)
STAGES = ("captioner", "filter", "decode", "pipeline", "storage")

# An H200: dense bf16 operations and bytes of memory a second, and the shares of these that others
# printed: a ViT-B/16 at 384 by AITemplate, of an A100's peak; copies, of an H200's.
PEAK, MEMORY = 989e12, 4.8e12
PEAK_SHARE, MEMORY_SHARE = 0.59, 0.80
PUBLISHED = "computed; an H200 at 59% of its peak, 80% of its bandwidth; not measured"
WEB_TEXTS = 1  # of a picture
TEXT_TOKENS = 20  # of a text that the filter reads
JPEG_BYTES = 60_000  # of a web picture of 384 pixels


@dataclass(frozen=True)
class Rate:
    """Pictures a second of a stage, and where that comes from.

    Attributes:
        shared: one for all GPUs.
    """

    images_per_second: float
    source: str
    shared: bool = False

    def on(self, gpus: int) -> float:
        return self.images_per_second * (1 if self.shared else gpus)


def see_operations(config: BlipConfig) -> float:
    """Multiplications and additions, two for each pair, of a picture's way to its memory."""
    vision, text = config.vision, config.text
    tokens, width = vision.tokens, vision.width
    layer = tokens * (4 * width**2 + 2 * width * vision.mlp_width) + 2 * tokens**2 * width
    patches = vision.grid**2 * 3 * vision.patch_size**2 * width
    memory = text.depth * tokens * 2 * width * text.width
    return 2.0 * (vision.depth * layer + patches + memory)


def token_operations(config: BlipConfig, vocabulary: bool) -> float:
    """Those of one token of a text, which looks at all of its picture."""
    text = config.text
    layer = 6 * text.width**2 + 2 * text.width * text.mlp_width
    layer += 2 * config.vision.tokens * text.width
    return 2.0 * (text.depth * layer + vocabulary * text.width * text.vocab_size)


def memory_bytes(config: BlipConfig) -> float:
    """Of a picture's keys and values in bf16, which every step of writing reads once."""
    return 2.0 * config.text.depth * config.vision.tokens * 2 * config.text.width


def computed(config: BlipConfig, captions: int, tokens: int) -> dict[str, Rate]:
    """The models' rates on an H200, from their operations and bytes."""
    operations, traffic = PEAK * PEAK_SHARE, MEMORY * MEMORY_SHARE
    see = see_operations(config) / operations
    write = captions * tokens * token_operations(config, True) / operations
    write += tokens * memory_bytes(config) / traffic  # samples of a picture share the reading
    texts = WEB_TEXTS + captions
    judge = texts * TEXT_TOKENS * token_operations(config, False) / operations
    judge += memory_bytes(config) / traffic
    return {
        "captioner": Rate(1 / (see + write), PUBLISHED),
        "filter": Rate(1 / (see + judge), PUBLISHED),
    }


def timed(data: Path, cores: int) -> dict[str, Rate]:
    """What one core of this machine does, times the cores beside a GPU; the pipeline is one
    process for each GPU."""
    from bench.capfilt_million import run, write_shards

    photos = sorted((data / "coco_train80" / "images").glob("*.jpg"))[:40]
    rates = {}
    if photos:
        turns = []
        for _ in range(3):  # the best: the first also loads libraries
            started = time.process_time()
            for photo in photos:
                read_picture(photo, ImageOptions(size=384))
            turns.append((time.process_time() - started) / len(photos))
        each = min(turns)
        note = f"timed here, {len(photos)} photos on one core, times {cores} cores"
        rates["decode"] = Rate(cores / each, note)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "source")
        source.mkdir()
        write_shards(source, 5000)
        started = time.perf_counter()
        run(source, Path(temporary, "out"), 5000)
        each = (time.perf_counter() - started) / 5000
    rates["pipeline"] = Rate(1 / each, "timed here, 5000 rows through a model that is instant")
    return rates


def given(path: Path) -> dict[str, Rate]:
    """Rates of a file.

    Raises:
        ValueError: where a stage is none of ours.
    """
    held = json.loads(path.read_text(encoding="utf-8"))
    unknown = sorted(set(held) - set(STAGES))
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is none of {', '.join(STAGES)}")
    return {name: Rate(float(v["images_per_second"]), v["source"]) for name, v in held.items()}


def of_run(folder: Path) -> dict[str, Rate]:
    """Rates that a CapFilt run wrote down, of each stage alone."""
    totals: dict[str, Any] = json.loads((folder / "totals.json").read_text(encoding="utf-8"))
    rates, source = {}, f"measured: {folder}, {totals['count']} pictures"
    for role in ("captioner", "filter", "decode"):
        stages = [s for name, s in totals["stages"].items() if name.split()[0] == role]
        busy = sum(stage["busy"] for stage in stages)  # several models take turns
        if busy:
            rates[role] = Rate(totals["count"] / busy, source)
    return rates


def estimate(rates: dict[str, Rate], gpus: int) -> tuple[float, str]:
    """Hours, and what limits them."""
    models = sum(1 / rates[name].on(gpus) for name in ("captioner", "filter"))
    lanes = {"the models": models}
    lanes |= {n: 1 / r.on(gpus) for n, r in rates.items() if n not in ("captioner", "filter")}
    limit = max(lanes, key=lambda name: lanes[name])
    return PICTURES * lanes[limit] / 3600, limit


def table(rates: dict[str, Rate]) -> list[str]:
    """Lines for people: hours of each stage alone, and of all together."""
    heads = "".join(f"{gpus:>8} GPU{'s' if gpus > 1 else ' '}" for gpus in GPUS)
    lines = [f"hours for {PICTURES / 1e6:.0f} million pictures; an estimate, not a measurement"]
    lines.append(f"{'stage':10} {'images/s':>9} {heads}  the rate is")
    for name in (name for name in STAGES if name in rates):
        rate = rates[name]
        hours = "".join(f"{PICTURES / rate.on(n) / 3600:12.2f}" for n in GPUS)
        per = "all share it" if rate.shared else "of each"
        lines.append(f"{name:10} {rate.images_per_second:9.0f} {hours}  {per}; {rate.source}")
    ends = [estimate(rates, gpus) for gpus in GPUS]
    lines.append(f"{'all':20} " + "".join(f"{hours:12.2f}" for hours, _ in ends))
    lines.append(f"{'limited by':20} " + "".join(f"{limit:>12}" for _, limit in ends))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=("base", "large"), default="base")
    parser.add_argument("--captions", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16, help="of a caption, with its prompt")
    parser.add_argument("--cores", type=int, default=16, help="of the processor, for each GPU")
    parser.add_argument("--storage", type=float, default=10.0, help="GB a second, shared by all")
    parser.add_argument("--run", type=Path, help="a CapFilt run: its rates are taken")
    parser.add_argument("--rates", type=Path, help="JSON; these come before all others")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    config = preset(args.preset)
    storage = Rate(args.storage * 1e9 / JPEG_BYTES, f"assumed: {args.storage:g} GB/s", shared=True)
    rates = {**computed(config, args.captions, args.tokens), "storage": storage}
    rates |= timed(args.data, args.cores)
    rates |= of_run(args.run) if args.run else {}
    rates |= given(args.rates) if args.rates else {}
    print("\n".join(table(rates)))


if __name__ == "__main__":
    main()
