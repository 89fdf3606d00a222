"""CapFilt's pipeline without the models' time: how many rows a second, and how much memory.

Small pictures in tar shards of 10,000 go through every stage, with a model that answers at once;
one text in ten is kept. The resident memory must not grow from the first tenth of the run on. Then
the same call again: what a restart costs when everything is done.

Usage: python -m bench.capfilt_million [--rows 20000]
       python -m bench.capfilt_million --rows 1000000 --folder /a/disk/million
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from blip_fast.capfilt import CapFiltOptions, CapFiltSummary, run_capfilt
from blip_fast.config import BlipConfig
from blip_fast.data.tarwrite import TarWriter
from blip_fast.images import ImageOptions, Status
from blip_fast.tasks.captions import Captions, Generated

PER_SHARD = 10_000
BATCH = 256
KEPT = 0.1
ALLOWED = 64 * 2**20  # bytes that resident memory may grow after the first tenth


class Instant:
    """Stands for a model: one caption a picture, and a score that is a text's hash."""

    def __init__(self) -> None:
        self.config = BlipConfig(kind="pretrain")
        self.source, self.trained, self.sha256, self.quantize = "instant", True, "0" * 64, None
        self.image_size, self.image_options = 32, ImageOptions(size=32)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tokenizer = SimpleNamespace(
            encode=lambda texts, first, length: SimpleNamespace(
                truncated=torch.zeros(len(texts), dtype=torch.bool)
            )
        )

    def see(self, pixels: torch.Tensor, batch_size: int | None = None) -> list[int]:
        return pixels.flatten(1)[:, 0].tolist()

    def caption(self, memory: list[int], prompt: str, *, seed: Sequence[int], **_: Any) -> Captions:
        texts = (f"a picture whose number is {number}" for number in seed)
        rows = tuple((Generated(text, -1.0, (1, 2, 3), (-1.0,), False),) for text in texts)
        return Captions(rows, (Status.SUCCESS,) * len(rows), ("",) * len(rows))

    def match(self, memory: list[int], texts: Sequence[str], pairs: Any, **_: Any) -> torch.Tensor:
        shares = [hashlib.blake2b(t.encode(), digest_size=1).digest()[0] / 256 for t in texts]
        logits = torch.tensor(shares).add(0.5 - (1 - KEPT)).clamp(1e-3, 1 - 1e-3).logit()
        return torch.stack([torch.zeros_like(logits), logits], 1)

    def embed_images(self, memory: list[int]) -> torch.Tensor:
        return torch.ones(len(memory), 1)

    def embed_texts(self, texts: Sequence[str], max_length: int) -> torch.Tensor:
        return torch.ones(len(texts), 1)


def write_shards(folder: Path, rows: int) -> None:
    """One shard, and as many names for it as make so many rows."""
    picture = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((32, 32)).save(picture, "JPEG")
    per_shard = min(rows, PER_SHARD)
    with (folder / "shard").open("wb") as file, TarWriter(file) as tar:
        for n in range(per_shard):
            tar.add(f"{n:09d}.jpg", picture.getvalue())
            tar.add(f"{n:09d}.txt", f"text number {n}".encode())
    for n in range(rows // per_shard):
        (folder / f"{n:05d}.tar").symlink_to(folder / "shard")


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(source: Path, output: Path, rows: int) -> tuple[CapFiltSummary, list[int]]:
    """A run, or the rest of one, with the resident memory before it and at each tenth of all."""
    model: Any = Instant()
    seen, sizes = 0, [resident()]

    def measure(number: int) -> None:
        nonlocal seen
        seen += number
        if seen * 10 // rows >= len(sizes):
            sizes.append(resident())

    summary = run_capfilt(source, output, model, model, CapFiltOptions(batch_size=BATCH), measure)
    return summary, sizes


def measure(folder: Path, rows: int) -> None:
    """Run, or go on, and tell; then once more, when everything is done."""
    source, output = folder / "source", folder / "out"
    if not source.exists():
        source.mkdir(parents=True)
        write_shards(source, rows)
    done = len(list(output.glob("*_stats.json"))) * min(rows, PER_SHARD)
    started = time.perf_counter()
    summary, sizes = run(source, output, rows)
    seconds = time.perf_counter() - started
    stats = summary.stats
    assert summary.complete and stats["successes"] == rows, stats["status_dict"]
    if done < rows:
        went_on = f", {done} were done before" if done else ""
        rate = (rows - done) / seconds
        print(f"{rows - done} rows in {seconds:.1f} s: {rate:.0f} rows/s{went_on}")
        for name, stage in stats["stages"].items():
            slow = "  the slowest" if name == stats["slowest"] else ""
            print(f"  {name:10} {stage['images_per_second']:10.0f} rows/s alone{slow}")
        print("resident MB before, and at each tenth:", *(size // 2**20 for size in sizes))
        growth = max(sizes[1:]) - sizes[1]
        assert growth <= ALLOWED, f"resident memory grew by {growth / 2**20:.0f} MB"
    started = time.perf_counter()
    again, _ = run(source, output, rows)
    assert again.done == 0 and again.count == rows
    print(f"again, with everything done: {time.perf_counter() - started:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="stays, and the same command goes on in it")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        measure(arguments.folder, arguments.rows)
        return
    with tempfile.TemporaryDirectory() as temporary:
        measure(Path(temporary), arguments.rows)


if __name__ == "__main__":
    main()
