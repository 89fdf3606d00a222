"""Scenes to pixels: shapes by their signed distances, edges as wide as a pixel, at any size.

All things of many scenes are drawn at once, shape by shape, each in a window around it. Only
+ - * / min max abs sqrt are used, so the same scene gives the same bytes in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blip_fast.scenes.world import Scene, Thing

Array = NDArray[np.float32]

# Half the extent of a thing, in units of the picture's side.
RADII = {"small": 0.1, "large": 0.145}

PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 215, 40),
    "orange": (245, 135, 30),
    "purple": (135, 50, 170),
    "pink": (250, 150, 190),
    "cyan": (60, 205, 215),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (18, 18, 18),
}

# The second colour of a texture is the first one darkened; its period, in units of the side, is
# the same for small and large things, so that size is not read from it.
_DARKER = 0.5
_PERIOD = 1 / 13


def render(scene: Scene, size: int) -> NDArray[np.uint8]:
    """One scene, [size, size, 3] RGB."""
    return render_many([scene], size)[0]


def render_many(scenes: Sequence[Scene], size: int) -> NDArray[np.uint8]:
    """Scenes to pixels, [N, size, size, 3] RGB.

    Raises:
        ValueError: where `size` is less than 16 pixels: nothing could be told apart.
    """
    if size < 16:
        raise ValueError(f"size is {size} pixels; scenes need at least 16")
    backgrounds = np.array([PALETTE[s.background] for s in scenes], np.float32).reshape(-1, 3)
    # A margin as wide as the largest window: no window is cut.
    window = 2 * math.ceil(RADII["large"] * size + 1.5)
    margin = window // 2
    side = size + 2 * margin
    canvas = np.empty((len(scenes), side, side, 3), np.float32)
    canvas[:] = backgrounds[:, None, None, :]
    # In a fixed order of shapes: in very small pictures the edges of neighbours may touch.
    by_shape: dict[str, list[tuple[int, Thing]]] = {shape: [] for shape in _DISTANCES}
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            by_shape[thing.shape].append((number, thing))
    for shape, placed in by_shape.items():
        if placed:
            _draw(canvas, shape, placed, size, window)
    inside = canvas[:, margin : margin + size, margin : margin + size]
    return (inside + 0.5).astype(np.uint8)


def _draw(
    canvas: Array, shape: str, placed: Sequence[tuple[int, Thing]], size: int, window: int
) -> None:
    """Blend things of one shape into the canvas."""
    things = [thing for _, thing in placed]
    centre = np.array([(t.x * size, t.y * size) for t in things], np.float32)
    radius = np.array([RADII[t.size] * size for t in things], np.float32)[:, None, None]
    corner = np.floor(centre + 0.5).astype(np.int64) - window // 2
    pixels = np.arange(window, dtype=np.float32) + np.float32(0.5)
    x = (corner[:, :1] + pixels - centre[:, :1])[:, None, :].astype(np.float32)
    y = (corner[:, 1:] + pixels - centre[:, 1:])[:, :, None].astype(np.float32)
    distance = _DISTANCES[shape](x / radius, y / radius) * radius  # in pixels
    coverage = np.clip(np.float32(0.5) - distance, 0, 1)[..., None]
    light = np.array([PALETTE[t.colour] for t in things], np.float32)[:, None, None, :]
    dark = _second_colour(things, x, y, size)[..., None]
    colour = light * (1 - dark * np.float32(1 - _DARKER))
    margin = window // 2
    number = np.array([n for n, _ in placed])[:, None, None]
    rows = (corner[:, 1:] + margin + np.arange(window))[:, :, None]
    columns = (corner[:, :1] + margin + np.arange(window))[:, None, :]
    # Things of a scene may share pixels of a window, but not of their coverage: one after the
    # other where a scene has several of this shape.
    for chosen in _rounds([n for n, _ in placed]):
        at = (number[chosen], rows[chosen], columns[chosen])
        below = canvas[at]
        canvas[at] = below + coverage[chosen] * (colour[chosen] - below)


def _rounds(numbers: Sequence[int]) -> list[list[int]]:
    """Places in `numbers`, grouped so that no number occurs twice in a group."""
    rounds: list[list[int]] = []
    seen: dict[int, int] = {}
    for place, number in enumerate(numbers):
        turn = seen.get(number, 0)
        seen[number] = turn + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(place)
    return rounds


def _second_colour(things: Sequence[Thing], x: Array, y: Array, size: int) -> Array:
    """How much of the dark colour each pixel has, 0 to 1; x and y in pixels from the centre."""
    period = np.float32(_PERIOD * size)
    textures = [t.texture for t in things]
    striped = np.array([t == "striped" for t in textures])[:, None, None]
    dotted = np.array([t == "dotted" for t in textures])[:, None, None]
    stripe = np.clip((period / 4 - _fold(y, period)) + np.float32(0.5), 0, 1)
    across, down = _fold(x, period), _fold(y, period)
    dot = np.clip(period * np.float32(0.36) - np.sqrt(across**2 + down**2) + np.float32(0.5), 0, 1)
    return (stripe * striped + dot * dotted).astype(np.float32)


def _fold(values: Array, period: np.float32) -> Array:
    """Distance to the nearest multiple of the period."""
    return np.abs(values - period * np.floor(values / period + np.float32(0.5)))


# Signed distances, in units of the radius, y downwards; negative inside. Beyond a corner they may
# be too small, which is outside the pixel that an edge is wide.


def _circle(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - np.float32(0.9)


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    return np.maximum(np.abs(x) - np.float32(width), np.abs(y) - np.float32(height))


def _square(x: Array, y: Array) -> Array:
    return _box(x, y, 0.8, 0.8)


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0))


def _diamond(x: Array, y: Array) -> Array:
    width = 0.7
    slope = 1 / math.hypot(1, width)
    return ((np.abs(x) + (np.abs(y) - 1) * np.float32(width)) * np.float32(slope)).astype(
        np.float32
    )


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.72)) - np.float32(0.24)


def _sides(x: Array, y: Array, number: int, distance: float) -> Array:
    """Distances to the lines of a regular polygon, [number, ...]; a corner points upwards."""
    angles = [math.pi / 2 + math.pi * (2 * k + 1) / number for k in range(number)]
    return np.stack(
        [
            x * np.float32(math.cos(a)) - y * np.float32(math.sin(a)) - np.float32(distance)
            for a in angles
        ]
    )


def _triangle(x: Array, y: Array) -> Array:
    return _sides(x, y - np.float32(0.2), 3, 0.55).max(0)


def _star(x: Array, y: Array) -> Array:
    """The pentagram: all points that lie beyond at most one of five lines."""
    inner = math.cos(2 * math.pi / 5)  # the lines' pentagon stands on its head
    sides = _sides(x, np.float32(0.08) - y, 5, inner)
    return np.partition(sides, 3, axis=0)[3]


def _heart(x: Array, y: Array) -> Array:
    """A square on its corner with half circles on its two upper sides."""
    half = np.float32(0.8)
    x, y = np.abs(x), y - np.float32(0.08)
    square = (x + np.abs(y) - half) * np.float32(math.sqrt(0.5))
    bow = np.sqrt((x - half / 2) ** 2 + (y + half / 2) ** 2) - half * np.float32(math.sqrt(0.5))
    return np.minimum(square, bow).astype(np.float32)


_DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
}
