"""One pretraining step, base size at 224 px: blip_fast against the reference's algorithm.

The peer is `peers/plain_pretrain.py`: the same mathematics as BLIP's own code does it. A step is
forward, backward, moving average and AdamW (fused for us, torch's default for the peer). Dropout is
off, so that losses can be compared: first in fp32 with a few pairs, then in the dtype that is
timed. Captions have 9 to 16 tokens, as COCO's; the peer pads them to 30, as its recipe says.

Then some steps are fed by the loader, from pictures of 640 x 480 as JPEG files, decoded and
augmented on the same processors: the share of the time that they wait for their batches.

Memory is the peak of a step above what stays: weights, moving averages, queues and the optimizer's
state. Each contender takes one step in a process of its own for that.

Usage: python -m bench.e2e_pretrain [--batch 16] [--threads 2] [--dtype bfloat16] [--seconds 150]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bench.harness import Case, print_table, race
from bench.peers.plain_pretrain import LENGTH, PlainPretrain
from blip_fast.config import IMAGE_MEAN, IMAGE_STD, BlipConfig, VisionConfig
from blip_fast.data import open_source
from blip_fast.images import ImageOptions
from blip_fast.images.augment import Augment
from blip_fast.med.blip import MED, initialise
from blip_fast.med.weights import ours_to_salesforce
from blip_fast.text import PackedText, Tokenizer, pack
from blip_fast.train import pretrain
from blip_fast.train.batches import PairBatch, predicted
from blip_fast.train.itc import MomentumContrast
from blip_fast.train.itm import Negatives
from blip_fast.train.loader import Loader, Order
from blip_fast.train.pretrain import Pretrain

CLS, SEP, DEC, ENC = 101, 102, 30522, 30523
QUEUE = 57_600
EPOCHS = 1.0  # of two over which alpha grows
ALPHA = 0.4 * EPOCHS / 2

Step = Callable[[], Tensor]


class Problem:
    """One batch, in both shapes."""

    def __init__(self, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(9, 17, (batch,), generator=generator).tolist()
        words = torch.randint(1000, 30_000, (batch, LENGTH), generator=generator).tolist()
        text = pack([[CLS, *row[: n - 2], SEP] for row, n in zip(words, lengths, strict=True)])
        images = torch.randint(0, 256, (batch, 3, 224, 224), generator=generator).to(torch.uint8)
        self.ours = PairBatch(list("x" * batch), images, text, torch.arange(batch), predicted(text))
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        self.images = (images / 255 - mean) / std
        self.ids, self.mask = padded(text)


def padded(text: PackedText) -> tuple[Tensor, Tensor]:
    rows = [[*row, *[0] * (LENGTH - len(row))] for row in text.tolist()]
    mask = torch.arange(LENGTH) < text.lengths[:, None]
    return torch.tensor(rows), mask.long()


def ours(dtype: torch.dtype) -> Pretrain:
    model = MED(BlipConfig(vision=VisionConfig(image_size=224)))
    initialise(model, seed=0)
    model = model.to(dtype)
    contrast = MomentumContrast(model, QUEUE, 0.995, 0.4, alpha_epochs=2, seed=0)
    return Pretrain(model, tokenizer=None, contrast=contrast)  # type: ignore[arg-type]


def plain(dtype: torch.dtype) -> PlainPretrain:
    """The peer, with weights and queues of its own that are equal to ours."""
    task = ours(dtype)
    named = {name: p.detach() for name, p in task.model.named_parameters()}
    shared = ours_to_salesforce(named, task.model.config)
    leaves: dict[tuple[int, torch.Size], Tensor] = {}
    state = {
        # Names of one tensor stay names of one tensor.
        name: leaves.setdefault((t.data_ptr(), t.shape), t.clone().requires_grad_())
        for name, t in shared.items()
    }
    copied = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")
    momentum = {n: t.detach().clone() for n, t in state.items() if n.startswith(copied)}
    queue = task.contrast.queue
    images, texts = (q.T.to(dtype).contiguous() for q in (queue.images, queue.texts))
    return PlainPretrain(state, momentum, images, texts, (CLS, ENC, DEC))


def our_losses(task: Pretrain, problem: Problem) -> dict[str, Tensor]:
    task.before_step()
    return dict(task(problem.ours, EPOCHS))


def plain_losses(task: PlainPretrain, problem: Problem) -> dict[str, Tensor]:
    images = problem.images.to(next(iter(task.state.values())).dtype)
    return task.losses(images, problem.ids, problem.mask, ALPHA)


def check(dtype: torch.dtype, batch: int, allowed: float) -> None:
    """Hold our losses against the peer's, with the negatives that the peer drew."""
    problem, peer = Problem(batch), plain(dtype)
    with torch.no_grad():
        expected = plain_losses(peer, problem)
        drawn = [torch.tensor(d) for d in peer.drawn]
        everyone = torch.ones(batch, dtype=torch.bool)
        original = pretrain.draw
        pretrain.draw = lambda *weights: Negatives(*drawn, everyone, everyone)
        try:
            found = our_losses(ours(dtype), problem)
        finally:
            pretrain.draw = original
    for name, loss in expected.items():
        error = abs(found[name].item() / loss.item() - 1)
        print(f"{dtype}, {batch} pairs: {name} {found[name]:.5f} and {loss:.5f}")
        assert error <= allowed, f"{name} differs by {error:.1e}, allowed is {allowed:.0e}"


def step(name: str, dtype: torch.dtype, problem: Problem) -> Step:
    """A training step of one contender; it gives the loss."""
    if name == "blip_fast":
        task = ours(dtype)
        run = optimised(task.model.parameters(), True, lambda p: our_losses(task, p))
    else:
        peer = plain(dtype)
        parameters = {id(t): t for t in peer.state.values()}.values()
        run = optimised(parameters, None, lambda p: plain_losses(peer, p))
    return lambda: run(problem)


def optimised(
    parameters: Iterable[Tensor], fused: bool | None, losses: Callable[[Any], Mapping[str, Tensor]]
) -> Callable[[Any], Tensor]:
    """What takes a batch, takes a step and gives the loss."""
    optimizer = torch.optim.AdamW(list(parameters), lr=1e-5, weight_decay=0.05, fused=fused)

    def run(problem: Any) -> Tensor:
        with torch.enable_grad():
            loss = torch.stack([value.float() for value in losses(problem).values()]).sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def waiting_share(dtype: torch.dtype, batch: int, steps: int = 4) -> float:
    """Of steps that a loader feeds, the share of the time spent waiting for batches."""
    task = ours(dtype)
    run = optimised(task.model.parameters(), True, lambda problem: task(problem, EPOCHS))
    waited = total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        loader = loader_over(jpegs(Path(folder), 4 * batch), task, batch)
        batches, done, epoch = loader.batches(0), 0, 0
        while done <= steps:  # the first, before which nothing was read, does not count
            start = time.perf_counter()
            if (problem := next(batches, None)) is None:
                epoch += 1
                batches = loader.batches(epoch)
                continue
            fed = time.perf_counter()
            task.before_step()
            run(problem)
            if done:
                waited += fed - start
                total += time.perf_counter() - start
            done += 1
        batches.close()
    return waited / total


def jpegs(folder: Path, number: int) -> Path:
    """A manifest of pictures, smooth noise of 640 x 480 pixels, with captions of 11 words."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in range(number):
        coarse = torch.rand(1, 3, 30, 40, generator=generator)
        pixels = (F.interpolate(coarse, (480, 640), mode="bicubic")[0] * 255).clamp(0, 255).byte()
        name = f"{n}.jpg"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name, quality=90)
        rows.append({"image": name, "caption": "a b c d e f g h i j k", "image_id": n})
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder / "pairs.json"


def loader_over(manifest: Path, task: Pretrain, batch: int) -> Loader:
    words = [*"abcdefghijk", *(f"[unused{i}]" for i in range(30_522 - 16))]
    task.tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    return Loader(
        Order([open_source(manifest)]),
        batch_size=batch,
        augment=Augment(224, 0.2),
        image_options=ImageOptions(size=224),
        collate=task.collate,
        workers=2,
    )


def peak_memory(name: str, arguments: argparse.Namespace) -> int:
    """Bytes of a step above what stays, measured in a process of its own."""
    command = [sys.executable, "-m", "bench.e2e_pretrain", "--peak", name]
    command += ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    command += ["--dtype", arguments.dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure_peak(name: str, dtype: torch.dtype, batch: int) -> int:
    run = step(name, dtype, Problem(batch))
    run()  # the optimizer's state is made here
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--peak", choices=["blip_fast", "reference"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    if arguments.peak:
        print(measure_peak(arguments.peak, dtype, arguments.batch))
        return
    check(torch.float32, 4, 1e-4)
    check(dtype, arguments.batch, 1e-4 if dtype == torch.float32 else 2e-2)
    problem = Problem(arguments.batch)
    names = "blip_fast", "reference"
    case = Case(
        f"pretraining step, {arguments.batch} pairs, {arguments.dtype}",
        {name: step(name, dtype, problem) for name in names},
        arguments.batch,
        "image",
    )
    print_table([(case, race(case, arguments.seconds, check=False))])
    share = waiting_share(dtype, arguments.batch)
    print(f"blip_fast, fed by the loader: {share:.1%} of the time spent waiting for data")
    peaks = {name: peak_memory(name, arguments) for name in names}
    for name, peak in peaks.items():
        share = peak / peaks["reference"]
        print(f"{name}: {peak / 2**20:,.0f} MiB above what stays, {share:.0%} of the reference's")


if __name__ == "__main__":
    main()
