"""The small visual world: scenes of a few things on a background, each a function of a seed.

A scene is truth, not pixels: `render` draws it, `language` speaks of it, `parse` judges what was
said. Things stand in the cells of a 3 x 3 grid, so that words for places have one meaning.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from blip_fast.data import stable_seed

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted")
BACKGROUNDS = ("white", "gray", "black")
GRID = 3
MAX_THINGS = 4

Split = Literal["train", "seen", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "seen", "unseen")

# Every shape and every colour once: shapes and colours are all known, these pairs never drawn
# but in the split "unseen".
HELD_OUT = frozenset(zip(COLOURS, SHAPES, strict=True))
_HELD_OUT_PAIRS = tuple(zip(COLOURS, SHAPES, strict=True))
_TRAINED_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)

_JITTER = 0.01  # of the picture's side: a large thing still ends within its cell
_REPEAT = 0.3  # how often a thing takes after an earlier one, so that there is something to count


@dataclass(frozen=True)
class Thing:
    """One object. `x` and `y` are its centre in units of the picture's side, from the top left."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float

    @property
    def column(self) -> int:
        """0 left, 1 middle, 2 right."""
        return min(GRID - 1, max(0, int(self.x * GRID)))

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom."""
        return min(GRID - 1, max(0, int(self.y * GRID)))

    @property
    def cell(self) -> int:
        return self.row * GRID + self.column


@dataclass(frozen=True)
class Scene:
    """Up to four things, no two in one cell, in reading order."""

    things: tuple[Thing, ...]
    background: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        return cls(tuple(Thing(**thing) for thing in values["things"]), values["background"])


def scene_seed(split: Split, number: int, seed: int) -> int:
    """The seed of a scene; no two splits share one."""
    return stable_seed(f"scene/{split}/{number}", seed)


def sample_scene(seed: int, split: Split = "train", things: int | None = None) -> Scene:
    """Draw a scene.

    Args:
        split: "unseen" draws all its things from the held-out pairs of colour and shape, the
            others draw none of them.
        things: how many; one to four, evenly, where not given.

    Raises:
        ValueError: where `split` is none of the three, or `things` is not 1 to 4.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if things is not None and not 1 <= things <= MAX_THINGS:
        raise ValueError(f"things is {things}; a scene has 1 to {MAX_THINGS}")
    rng = random.Random(seed)
    number = rng.randint(1, MAX_THINGS) if things is None else things
    drawn: list[Thing] = []
    for cell in rng.sample(range(GRID * GRID), number):
        colour, shape = rng.choice(_HELD_OUT_PAIRS if split == "unseen" else _TRAINED_PAIRS)
        if drawn and rng.random() < _REPEAT:
            model = rng.choice(drawn)
            shape = model.shape
            if rng.random() < 0.5 or not _may_be(colour, shape, split):
                colour = model.colour
        x, y = _place(cell, rng)
        drawn.append(Thing(shape, colour, rng.choice(SIZES), rng.choice(TEXTURES), x, y))
    return _scene(drawn, rng.choice(BACKGROUNDS))


def twin(scene: Scene, rng: random.Random, split: Split = "train") -> tuple[Scene, str]:
    """A scene that differs in one attribute of one thing, or in one thing more or less.

    Returns:
        the scene, and what was changed: "shape", "colour", "size", "texture", "position",
        "relation" (two things have changed places) or "count".
    """
    changes = list(_CHANGES)
    rng.shuffle(changes)
    for name in changes:
        things = _CHANGES[name](list(scene.things), rng, split)
        if things is not None:
            return _scene(things, scene.background), name
    raise AssertionError("a thing can always be moved")


@dataclass(frozen=True)
class Clip:
    """A moving picture: the first thing of `frames[0]` moves, the others stand.

    Attributes:
        frames: scenes at equal times; things keep their places in the tuple.
        direction: "left", "right", "up" or "down".
    """

    frames: tuple[Scene, ...]
    direction: str


def sample_clip(seed: int, frames: int = 8, split: Split = "train") -> Clip:
    """A thing that crosses the picture along a row or a column that is otherwise empty.

    Raises:
        ValueError: where there are fewer than two frames.
    """
    if frames < 2:
        raise ValueError(f"frames is {frames}; a clip has at least 2")
    rng = random.Random(seed)
    scene = sample_scene(rng.getrandbits(62), split)
    mover, *others = scene.things
    direction = rng.choice(("left", "right", "up", "down"))
    horizontal = direction in ("left", "right")
    lane = mover.row if horizontal else mover.column
    standing = [t for t in others if (t.row if horizontal else t.column) != lane]
    ends = (1 / (2 * GRID), 1 - 1 / (2 * GRID))
    start, end = ends if direction in ("right", "down") else ends[::-1]
    shown = []
    for frame in range(frames):
        at = start + (end - start) * frame / (frames - 1)
        x, y = (at, mover.y) if horizontal else (mover.x, at)
        moved = dataclasses.replace(mover, x=x, y=y)
        shown.append(Scene((moved, *standing), scene.background))
    return Clip(tuple(shown), direction)


def held_out(colour: str, shape: str) -> bool:
    """Whether no training picture has this pair."""
    return (colour, shape) in HELD_OUT


def _may_be(colour: str, shape: str, split: Split) -> bool:
    return held_out(colour, shape) == (split == "unseen")


def _scene(things: Sequence[Thing], background: str) -> Scene:
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)), background)


def _place(cell: int, rng: random.Random) -> tuple[float, float]:
    row, column = divmod(cell, GRID)
    x = (column + 0.5) / GRID + rng.uniform(-_JITTER, _JITTER)
    y = (row + 0.5) / GRID + rng.uniform(-_JITTER, _JITTER)
    return round(x, 4), round(y, 4)


_Change = Callable[[list[Thing], random.Random, Split], "list[Thing] | None"]


def _changes_attribute(name: str, values: Sequence[str]) -> _Change:
    def change(things: list[Thing], rng: random.Random, split: Split) -> list[Thing] | None:
        place = rng.randrange(len(things))
        others = [v for v in values if v != getattr(things[place], name)]
        thing: dict[str, Any] = vars(things[place])
        changed = [Thing(**{**thing, name: value}) for value in others]
        changed = [t for t in changed if _may_be(t.colour, t.shape, split)]
        if not changed:  # a held-out pair has no neighbour of its own kind
            return None
        things[place] = rng.choice(changed)
        return things

    return change


def _move(things: list[Thing], rng: random.Random, split: Split) -> list[Thing] | None:
    free = sorted(set(range(GRID * GRID)) - {t.cell for t in things})
    place = rng.randrange(len(things))
    x, y = _place(rng.choice(free), rng)
    things[place] = dataclasses.replace(things[place], x=x, y=y)
    return things


def _swap(things: list[Thing], rng: random.Random, split: Split) -> list[Thing] | None:
    if len(things) < 2:
        return None
    a, b = rng.sample(range(len(things)), 2)
    if (things[a].shape, things[a].colour) == (things[b].shape, things[b].colour):
        return None
    one, other = things[a], things[b]
    things[a] = dataclasses.replace(one, x=other.x, y=other.y)
    things[b] = dataclasses.replace(other, x=one.x, y=one.y)
    return things


def _add_or_remove(things: list[Thing], rng: random.Random, split: Split) -> list[Thing] | None:
    if len(things) == MAX_THINGS or (len(things) > 1 and rng.random() < 0.5):
        things.pop(rng.randrange(len(things)))
        return things
    free = sorted(set(range(GRID * GRID)) - {t.cell for t in things})
    x, y = _place(rng.choice(free), rng)
    things.append(dataclasses.replace(rng.choice(things), x=x, y=y))
    return things


_CHANGES: dict[str, _Change] = {
    "shape": _changes_attribute("shape", SHAPES),
    "colour": _changes_attribute("colour", COLOURS),
    "size": _changes_attribute("size", SIZES),
    "texture": _changes_attribute("texture", TEXTURES),
    "position": _move,
    "relation": _swap,
    "count": _add_or_remove,
}
