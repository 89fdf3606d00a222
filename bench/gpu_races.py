"""The rooms against their strongest peers on one GPU, as shares of what the GPU is seen to reach.

`make gpu` runs it; by itself: `python -m bench.gpu_races --out rows.csv`. Two probes come first:
how fast the device copies, and how fast it multiplies large bf16 matrices. Every rate is also given
in per cent of its probe. A peer that is not installed, or refuses a case, is a row with the reason.
The last rows are the aims of `gpu_aims.py` beside what was measured.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu_aims import OURS, Rows, aims
from bench.harness import Case, Timing, race, rate
from bench.machine import git_sha, model_name
from bench.peers import gpu_attention, gpu_rows, gpu_tokens
from blip_fast import kernels
from blip_fast.config import IMAGE_MEAN, IMAGE_STD

# Peers that compile take minutes on a CPU, where all of this is only seen to run.
COMPILED = ("torch.compile", "FlexAttention")
DTYPE = torch.bfloat16
COLUMNS = ("case", "contender", "median ms", "20% ms", "80% ms", "rate", "% of probe", "ratio")
FACTS = ("peak MB", "note", "git sha", "machine", "torch")


@dataclass(frozen=True)
class Scale:
    """How large the problems are; the small ones show on any machine that all of this runs."""

    images: int = 64
    heads: int = 12
    tokens: tuple[int, ...] = (197, 577, 901)
    texts: int = 256
    length: int = 20
    memories: int = 128
    rows: int = 64 * 577
    hidden: int = 4096
    words: int = 30524
    probe: int = 8192
    pairs: int = 64
    queue: int = 57600
    pixels: int = 384
    positions: int = 40


SMALL = Scale(2, 1, (5, 19), 4, 3, 2, 6, 5, 11, 32, 3, 7, 32, 5)


@dataclass(frozen=True)
class Entry:
    """A case, and why some of its peers do not take part."""

    case: Case
    absent: dict[str, str] = field(default_factory=dict)


def probes(scale: Scale) -> Iterator[Case]:
    """What the machine does at its best: copying bytes, multiplying matrices."""
    source = torch.randn(scale.probe, scale.probe * 4)
    target = torch.empty_like(source)
    yield Case("copy", {"torch": lambda: target.copy_(source)}, 2 * source.nbytes, "byte")
    a, b = torch.randn(2, scale.probe, scale.probe).to(DTYPE)
    yield Case("matmul, bf16", {"torch": lambda: a @ b}, 2 * scale.probe**3, "FLOP")


def entry(
    name: str,
    ours: Callable[[], Any],
    peers: dict[str, Callable[[], Any]],
    amount: float,
    unit: Any,
    call: Callable[[Any], Callable[[], Any]],
) -> Entry:
    """A case of those peers that can be built and called; `call` binds the tensors."""
    contenders, absent = {OURS: call(ours)}, {}
    for peer, build in peers.items():
        if peer.startswith(COMPILED) and torch.get_default_device().type != "cuda":
            absent[peer] = "compiled on a GPU only"
            continue
        try:
            bound = call(build())
            bound()
        except Exception as error:  # a peer may fail in any way; we say how and go on
            absent[peer] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        else:
            contenders[peer] = bound
    return Entry(Case(name, contenders, amount, unit), absent)


def _apply(function: Callable, *tensors: Tensor) -> Callable[[], Tensor]:
    return lambda: function(*tensors)


def _step(function: Callable, grad: Tensor, *leaves: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward; the gradients are the result."""

    def step() -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(function(*leaves), leaves, grad)

    return step


def _backward(
    function: Callable, grad: Tensor, *leaves: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """The gradients alone, of what was computed before."""
    with torch.inference_mode(False), torch.enable_grad():
        out = function(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def self_attention(scale: Scale) -> Iterator[Entry]:
    for tokens in scale.tokens:
        qkv = torch.randn(scale.images, tokens, 3, scale.heads, 64).to(DTYPE)
        flops = 4 * scale.images * scale.heads * tokens**2 * 64
        peers, shape = gpu_attention.dense_peers(), f"{tokens} tokens of {scale.images} images"
        call = partial(_bind, _apply, (qkv,))
        yield entry(f"attention, {shape}", kernels.attention, peers, flops, "FLOP", call)
        call = partial(_bind, _step, (torch.randn_like(qkv[:, :, 0]), *_leaves(qkv)))
        name = f"attention with gradient, {shape}"
        yield entry(name, kernels.attention, peers, 3.5 * flops, "FLOP", call)
    offsets = _offsets(scale.texts, scale.length)
    qkv = torch.randn(scale.texts * scale.length, 3, scale.heads, 64).to(DTYPE)
    flops = 4 * scale.texts * scale.heads * scale.length**2 * 64
    ours = partial(kernels.attention, offsets=offsets, max_length=scale.length, causal=True)
    peers = gpu_attention.packed_peers(offsets, scale.length, True)
    call = partial(_bind, _apply, (qkv,))
    name = f"attention, causal, {scale.texts} texts x {scale.length}"
    yield entry(name, ours, peers, flops / 2, "FLOP", call)


def cross_attention(scale: Scale) -> Iterator[Entry]:
    tokens, images = scale.tokens[1], scale.memories
    q = torch.randn(scale.texts * scale.length, scale.heads, 64).to(DTYPE)
    memory = torch.randn(images, tokens, 2, scale.heads, 64).to(DTYPE)
    offsets, index = _offsets(scale.texts, scale.length), torch.arange(scale.texts) % images
    peers = gpu_attention.cross_peers(offsets, index, scale.length)
    ours = partial(_cross, offsets=offsets, index=index)
    flops = 4 * q.shape[0] * scale.heads * tokens * 64
    shape = f"{scale.texts} texts x {scale.length} on {images} x {tokens}"
    call = partial(_bind, _apply, (q, memory))
    yield entry(f"cross_attention, {shape}", ours, peers, flops, "FLOP", call)
    call = partial(_bind, _step, (torch.randn_like(q), *_leaves(q, memory)))
    name = f"cross_attention with gradient, {shape}"
    yield entry(name, ours, peers, 3.5 * flops, "FLOP", call)


def _cross(q: Tensor, memory: Tensor, offsets: Tensor, index: Tensor) -> Tensor:
    return kernels.cross_attention(q, memory, offsets, index)


def decode_attention(scale: Scale) -> Iterator[Entry]:
    tokens, images = scale.tokens[1], scale.memories
    memory = torch.randn(images, tokens, 2, scale.heads, 64).to(DTYPE)
    for beams in (1, 3):
        q = torch.randn(images * beams, scale.heads, 64).to(DTYPE)
        index = torch.arange(images).repeat_interleave(beams)
        ours = partial(kernels.decode_cross_attention, q, memory, index)
        peers = gpu_attention.decode_peers(q, memory, index, beams)
        name = f"decode_cross_attention, {beams} beams on {images} x {tokens}"
        yield entry(name, ours, peers | _both(ours), memory.nbytes, "byte", _as_it_is)
        cache = torch.randn(len(q), scale.positions, 2, scale.heads, 64).to(DTYPE)
        # Each position of each sequence lies in the row of any beam of its image.
        ancestors = (index * beams)[:, None] + torch.randint(beams, cache.shape[:2])
        lengths = torch.full((len(q),), scale.positions)
        ours = partial(kernels.decode_attention, q, cache, ancestors, lengths)
        peers = gpu_tokens.past_peers(q, cache, ancestors, lengths)
        places = ancestors * scale.positions + torch.arange(scale.positions)
        amount = places.unique().numel() * cache[0, 0].nbytes
        name = f"decode_attention, {beams} beams of {images} x {scale.positions}"
        yield entry(name, ours, peers | _both(ours), amount, "byte", _as_it_is)


def _both(call: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Decoding's two implementations by name; ours is the first of them that runs."""
    names = ("triton", "cuda")
    return {f"{OURS}, {name}": partial(_named, name, call) for name in names}


def _named(implementation: str, call: Callable[[], Tensor]) -> Tensor:
    with kernels.use(implementation, "decode_attention"):
        return call()


def rows(scale: Scale) -> Iterator[Entry]:
    """LayerNorm, and the language head with its loss."""
    x, residual = torch.randn(2, scale.rows, 768).to(DTYPE)
    weight, bias = torch.randn(2, 768).to(DTYPE)

    def normalise(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.add_layernorm(x, residual, weight, bias, gpu_rows.EPS)[1]

    tensors, peers = (x, residual, weight, bias), gpu_rows.layernorm_peers()
    call = partial(_bind, _apply, tensors)
    shape = f"[{scale.rows}, 768]"
    # x and the residual are read, the sum and its norm written; backward, the norm's gradient and
    # the sum read, one gradient written for both.
    yield entry(f"add_layernorm, {shape}", normalise, peers, 4 * x.nbytes, "byte", call)
    for how, bind, times in (("backward", _backward, 3), ("with gradient", _step, 7)):
        call = partial(_bind, bind, (torch.randn_like(x), *_leaves(*tensors)))
        name = f"add_layernorm {how}, {shape}"
        yield entry(name, normalise, peers, times * x.nbytes, "byte", call)

    targets = torch.randint(0, scale.words, (scale.hidden,))
    hidden = torch.randn(scale.hidden, 768).to(DTYPE)
    head, head_bias = (torch.randn(scale.words, 768) * 0.02).to(DTYPE), torch.zeros(scale.words)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(hidden, weight, bias, targets, 0.1).mean()

    leaves = _leaves(hidden, head, head_bias.to(DTYPE))
    call = partial(_bind, _step, (torch.ones(()), *leaves))
    peers = gpu_rows.cross_entropy_peers(targets, 0.1)
    flops = 6 * scale.hidden * scale.words * 768
    name = f"linear_cross_entropy with gradient {scale.hidden} x {scale.words}"
    yield entry(name, loss, peers, flops, "FLOP", call)


def contrastive(scale: Scale) -> Iterator[Entry]:
    """One direction of ITC, with the gradient of the features."""
    entries = scale.pairs + scale.queue
    features, momentum = F.normalize(torch.randn(2, scale.pairs, 256), dim=-1).to(DTYPE)
    bank = F.normalize(torch.randn(entries, 256), dim=-1).to(DTYPE)
    ids, temperature, alpha = torch.arange(entries), torch.tensor(0.07), 0.4

    def loss(features: Tensor) -> Tensor:
        positives = ids[: scale.pairs]
        return kernels.contrastive(features, momentum, bank, temperature, positives, ids, alpha)

    peers = gpu_rows.contrastive_peers(momentum, bank, temperature, alpha)
    call = partial(_bind, _step, (torch.ones(scale.pairs), *_leaves(features)))
    name = f"contrastive with gradient {scale.pairs} x {entries}"
    # Forward and backward read the bank once each, at the least.
    yield entry(name, loss, peers, 2 * bank.nbytes, "byte", call)


def pixels(scale: Scale) -> Iterator[Entry]:
    """Patches alone, and with the product that embeds them."""
    shape = (scale.images, 3, scale.pixels, scale.pixels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    ours = partial(kernels.patchify, images, 16, IMAGE_MEAN, IMAGE_STD, DTYPE)
    peers = gpu_tokens.patch_peers(images, 16, IMAGE_MEAN, IMAGE_STD, DTYPE)
    amount, name = images.numel() * (1 + DTYPE.itemsize), f"{scale.images} x {scale.pixels} px"
    yield entry(f"patchify, {name}", ours, peers, amount, "byte", _as_it_is)
    weight = (torch.randn(768, 3, 16, 16) * 0.02).to(DTYPE)
    peers = gpu_tokens.embedding_peers(images, weight, IMAGE_MEAN, IMAGE_STD)
    flops = 2 * 768 * images.numel()
    embed = partial(_embed, ours, weight.flatten(1))
    yield entry(f"patchify and linear, {name}", embed, peers, flops, "FLOP", _as_it_is)


def _embed(patches: Callable[[], Tensor], weight: Tensor) -> Tensor:
    return kernels.linear(patches(), weight, None)


def tokens(scale: Scale) -> Iterator[Entry]:
    """The choice of the next token: samples of images, and beams."""
    for top_k in (50, 0):
        logits, uniform = torch.randn(scale.texts, scale.words) * 3, torch.rand(scale.texts)
        k = min(top_k, scale.words - 1)
        ours = partial(_sample, logits, uniform, k)
        peers = gpu_tokens.sample_peers(logits, uniform, k, 0.9)
        name = f"sample, {scale.texts} x {scale.words}, top-k {top_k}, top-p 0.9"
        yield entry(name, ours, peers, logits.nbytes, "byte", _as_it_is)
    images, beams = scale.memories, 3
    log_probs = torch.randn(images * beams, scale.words).log_softmax(1)
    scores = torch.randn(images, beams)
    ours = partial(_best_scores, log_probs, scores, 2 * beams)
    peers = gpu_tokens.beam_peers(log_probs, scores, 2 * beams)
    name = f"beam_step, {images} x {beams} x {scale.words}"
    yield entry(name, ours, peers, log_probs.nbytes, "byte", _as_it_is)


def _sample(logits: Tensor, uniform: Tensor, top_k: int) -> Tensor:
    return kernels.sample(logits, uniform, 1.0, top_k, 0.9).float()


def _best_scores(log_probs: Tensor, scores: Tensor, keep: int) -> Tensor:
    return kernels.beam_step(log_probs, scores, keep)[0]


def _as_it_is(function: Callable[[], Any]) -> Callable[[], Any]:
    return function


def _bind(how: Callable, tensors: tuple[Tensor, ...], function: Callable) -> Callable[[], Any]:
    return how(function, *tensors)


def _offsets(texts: int, length: int) -> Tensor:
    return torch.tensor([0, *accumulate([length] * texts)], dtype=torch.int32)


ROOMS = (self_attention, cross_attention, decode_attention, rows, contrastive, pixels, tokens)


def peaks(case: Case, device: torch.device) -> dict[str, float]:
    """MB of a device's memory that each contender takes beside its arguments; none on a CPU."""
    if device.type != "cuda":
        return {}
    result = {}
    for name, call in case.contenders.items():
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        result[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return result


def lines(
    entry: Entry, timings: dict[str, Timing], best: dict[str, float]
) -> Iterator[dict[str, str]]:
    """A row for each contender, and one for each that is absent."""
    case, ours = entry.case, next(iter(timings.values())).median
    for name, t in timings.items():
        share = 100 * case.amount / t.median / best[case.unit]
        numbers = (t.median * 1e3, t.low * 1e3, t.high * 1e3)
        texts = (rate(case, t), f"{share:.1f}", f"{t.median / ours:.2f}")
        yield dict(
            zip(COLUMNS, (case.name, name, *(f"{n:.5f}" for n in numbers), *texts), strict=True)
        )
    for name, why in entry.absent.items():
        yield {"case": case.name, "contender": name, "note": why}


def run(scale: Scale, device: torch.device, seconds: float, out: Path) -> None:
    """Race everything; rows are printed and appended to `out` as they come."""
    facts = {"git sha": git_sha(), "machine": model_name(device), "torch": torch.__version__}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file, device:
        writer = csv.DictWriter(file, (*COLUMNS, *FACTS), lineterminator="\n")
        writer.writeheader()
        best: dict[str, float] = {}
        written: list[dict[str, str]] = []

        def write(row: dict[str, str]) -> None:
            shown = (*COLUMNS, "peak MB", "note")
            print("  ".join(f"{row.get(c, ''):>12}" for c in shown), flush=True)
            written.append(row)
            writer.writerow({**row, **facts})
            file.flush()

        for case in probes(scale):
            timings = race(case, seconds)
            best[case.unit] = case.amount / next(iter(timings.values())).median
            writer.writerows({**row, **facts} for row in lines(Entry(case), timings, best))
        for room in ROOMS:
            torch.manual_seed(0)
            for one in room(scale):
                memory = peaks(one.case, device)
                for row in lines(one, race(one.case, seconds), best):
                    if row["contender"] in memory:
                        row["peak MB"] = f"{memory[row['contender']]:.2f}"
                    write(row)
        measured = Rows(written)
        for aim in aims(scale.tokens[1]):
            write(aim.row(measured))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a csv file, written anew")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each case; default 1.5")
    parser.add_argument("--small", action="store_true", help="tiny problems, to see that it runs")
    args = parser.parse_args(argv)
    run(SMALL if args.small else Scale(), torch.device(args.device), args.seconds, args.out)


if __name__ == "__main__":
    main()
