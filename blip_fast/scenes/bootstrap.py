"""The vision encoder's start: a plain ViT learns to name what stands in every cell.

As BLIP starts its vision encoder from one trained on ImageNet's labels. Scenes are drawn fresh
without end; nothing is seen twice, so there is nothing to memorise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from blip_fast.config import BlipConfig
from blip_fast.data import replacing
from blip_fast.med.blip import MED, initialise
from blip_fast.med.vision import VisionTransformer
from blip_fast.scenes.labels import (
    ATTRIBUTES,
    CELLS,
    CLASSES,
    IGNORE,
    Labels,
    label,
    trained_pairs,
)
from blip_fast.scenes.render import render_many
from blip_fast.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    MAX_THINGS,
    SHAPES,
    Split,
    sample_scene,
    scene_seed,
)

_WEIGHT_OF_EMPTY = 0.2  # six cells of nine are empty, and easily told
_WEIGHT_OF_PAIRS = 0.5  # of a sum over 56 of them


@dataclass(frozen=True)
class BootstrapOptions:
    """Sizes are samples or steps; rates are AdamW's.

    Attributes:
        warmup: steps of a rate that grows from nothing; then half a cosine down to nothing.
        seed: of the weights and of all scenes.
    """

    steps: int = 1600
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.05
    seed: int = 0


class Probes(nn.Module):
    """Linear readers of image tokens, thrown away after the training.

    A cell is read from the mean of the patches in it. Every patch tells in which cell it lies:
    otherwise no token would have to carry its place, and texts could never learn where things
    are. The class token, which will speak for the whole picture in ITC, tells how many things
    there are, which pairs of colour and shape are among them, which cells are taken, and the
    background.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.Linear(width, CLASSES)
        self.place = nn.Linear(width, CELLS)
        self.taken = nn.Linear(width, CELLS)
        self.pairs = nn.Linear(width, len(COLOURS) * len(SHAPES))
        self.number = nn.Linear(width, MAX_THINGS + 1)
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def cells(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens [N, 1 + G * G, W] to [N, CELLS, classes], by attribute."""
        side = round((tokens.shape[1] - 1) ** 0.5)
        patches = tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        cells = F.adaptive_avg_pool2d(patches, GRID).flatten(2).transpose(1, 2)
        parts = self.cell(cells).split(list(ATTRIBUTES.values()), dim=-1)
        return dict(zip(ATTRIBUTES, parts, strict=True))

    def places(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, G * G, CELLS] of where each patch lies, and the truth [G * G]."""
        logits: Tensor = self.place(tokens[:, 1:])
        side = round(logits.shape[1] ** 0.5)
        lines = torch.arange(side) * GRID // side
        return logits, (lines[:, None] * GRID + lines).flatten()


@dataclass(frozen=True)
class Reading:
    """How well held-out scenes are read, all in shares.

    Attributes:
        cells: of things whose attribute is right, by attribute; "empty": of empty cells.
        pairs: of scenes whose pairs of colour and shape are all right, and no other is named.
        places: of patches that know in which cell they lie.
        number, background: of scenes of which they are right.
    """

    cells: dict[str, float]
    pairs: float
    places: float
    number: float
    background: float


def bootstrap(
    config: BlipConfig,
    options: BootstrapOptions,
    report: Callable[[int, float, Reading], None] | None = None,
    every: int = 500,
) -> VisionTransformer:
    """Train the vision encoder of `config` on the labels of endless fresh scenes.

    Args:
        report: called with the step, the loss and the reading of held-out scenes.
        every: steps between two reports.
    """
    torch.manual_seed(options.seed)
    med = MED(config)
    initialise(med, options.seed)
    vision, probes = med.vision, Probes(config.vision.width)
    parameters = [*vision.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    for step, (pixels, labels) in enumerate(_batches(config, options)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options)
        loss = _loss(probes, vision(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if report is not None and ((step + 1) % every == 0 or step + 1 == options.steps):
            report(step + 1, loss.item(), read(vision, probes, seed=options.seed))
    return vision


def rate(step: int, options: BootstrapOptions) -> float:
    """The learning rate of a step."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@torch.inference_mode()
def read(
    vision: VisionTransformer,
    probes: Probes,
    split: Split = "seen",
    number: int = 512,
    seed: int = 0,
) -> Reading:
    """Read held-out scenes; in the split "seen", pairs are looked for among the trained ones."""
    scenes = [sample_scene(scene_seed(split, n, seed), split) for n in range(number)]
    pixels = torch.from_numpy(render_many(scenes, vision.config.image_size)).permute(0, 3, 1, 2)
    tokens = torch.cat([vision(part.contiguous()) for part in pixels.split(64)])
    labels, shares = label(scenes), {}
    things = labels.cells["colour"] != IGNORE
    for name, logits in probes.cells(tokens).items():
        right = logits.argmax(-1) == labels.cells[name]
        shares[name] = right[things].float().mean().item()
        if name == "shape":
            shares["empty"] = right[~things].float().mean().item()
    known = trained_pairs() if split == "seen" else ~trained_pairs()
    whole = tokens[:, 0]
    pairs = ((probes.pairs(whole) > 0) == (labels.pairs > 0))[:, known].all(dim=1)
    places, truth = probes.places(tokens)
    return Reading(
        cells=shares,
        pairs=pairs.float().mean().item(),
        places=(places.argmax(-1) == truth).float().mean().item(),
        number=(probes.number(whole).argmax(1) == labels.number).float().mean().item(),
        background=(probes.background(whole).argmax(1) == labels.background).float().mean().item(),
    )


def save_vision(vision: VisionTransformer, path: Path) -> None:
    """Write the encoder's tensors, named as in a whole model: `vision.blocks.0...`."""
    state = {f"vision.{k}": v.detach().contiguous() for k, v in vision.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def _batches(config: BlipConfig, options: BootstrapOptions) -> Iterator[tuple[Tensor, Labels]]:
    for step in range(options.steps):
        first = step * options.batch_size
        numbers = range(first, first + options.batch_size)
        scenes = [sample_scene(scene_seed("train", n, options.seed)) for n in numbers]
        pixels = torch.from_numpy(render_many(scenes, config.vision.image_size))
        yield pixels.permute(0, 3, 1, 2).contiguous(), label(scenes)


def _loss(probes: Probes, tokens: Tensor, labels: Labels) -> Tensor:
    """The sum of all readers' losses.

    Pairs that no training picture has are left out: told "never" for each of them, the encoder
    would learn that they cannot be.
    """
    whole = tokens[:, 0]
    loss = F.cross_entropy(probes.background(whole), labels.background)
    loss = loss + F.cross_entropy(probes.number(whole), labels.number)
    known = trained_pairs()
    pairs = F.binary_cross_entropy_with_logits(
        probes.pairs(whole)[:, known], labels.pairs[:, known], reduction="none"
    )
    loss = loss + _WEIGHT_OF_PAIRS * pairs.sum(dim=1).mean()
    taken = (labels.cells["colour"] != IGNORE).float()
    loss = loss + F.binary_cross_entropy_with_logits(probes.taken(whole), taken)
    places, truth = probes.places(tokens)
    loss = loss + F.cross_entropy(places.transpose(1, 2), truth.expand(len(places), -1))
    for name, logits in probes.cells(tokens).items():
        weight = torch.ones(logits.shape[-1])
        if name == "shape":
            weight[-1] = _WEIGHT_OF_EMPTY
        loss = loss + F.cross_entropy(
            logits.flatten(0, 1), labels.cells[name].flatten(), weight, ignore_index=IGNORE
        )
    return loss
