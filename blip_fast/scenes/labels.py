"""Scenes as labels for every cell of the grid: what the vision encoder first learns to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip_fast.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    held_out,
)

CELLS = GRID * GRID
IGNORE = -100  # a cell without a thing has no colour

# Attribute to its number of classes in a cell; the shape's last class is an empty cell.
ATTRIBUTES = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS),
    "size": len(SIZES),
    "texture": len(TEXTURES),
}
CLASSES = sum(ATTRIBUTES.values())


@dataclass(frozen=True)
class Labels:
    """What stands where.

    Attributes:
        cells: attribute to [N, CELLS] int64; IGNORE where there is nothing to name.
        background: [N] int64.
        number: [N] int64, of things.
        pairs: [N, COLOURS * SHAPES] float32, 1 for every pair of colour and shape that is there.
    """

    cells: dict[str, Tensor]
    background: Tensor
    number: Tensor
    pairs: Tensor


def label(scenes: Sequence[Scene]) -> Labels:
    """The labels of scenes."""
    values = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
    cells = {name: torch.full((len(scenes), CELLS), IGNORE) for name in ATTRIBUTES}
    cells["shape"].fill_(len(SHAPES))
    pairs = torch.zeros(len(scenes), len(COLOURS), len(SHAPES))
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            pairs[number, COLOURS.index(thing.colour), SHAPES.index(thing.shape)] = 1
            for name, known in values.items():
                cells[name][number, thing.cell] = known.index(getattr(thing, name))
    return Labels(
        cells,
        torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]),
        torch.tensor([len(scene.things) for scene in scenes]),
        pairs.flatten(1),
    )


def trained_pairs() -> Tensor:
    """[COLOURS * SHAPES] bool: whether training pictures have the pair."""
    return torch.tensor([not held_out(colour, shape) for colour in COLOURS for shape in SHAPES])
