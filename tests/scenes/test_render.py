from __future__ import annotations

import numpy as np
import pytest

from blip_fast.scenes.render import PALETTE, RADII, render, render_many
from blip_fast.scenes.world import (
    COLOURS,
    GRID,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    sample_scene,
)


def alone(**changed: str) -> Scene:
    values = {"shape": "square", "colour": "red", "size": "large", "texture": "solid", **changed}
    return Scene((Thing(**values, x=0.5, y=0.5),), "white")


@pytest.mark.parametrize("size", [16, 48, 64, 96, 131])
def test_a_batch_has_the_bytes_of_single_pictures(size: int) -> None:
    scenes = [sample_scene(seed) for seed in range(100)]
    together = render_many(scenes, size)
    assert together.dtype == np.uint8 and together.shape == (100, size, size, 3)
    for scene, pixels in zip(scenes, together, strict=True):
        np.testing.assert_array_equal(pixels, render(scene, size))


@pytest.mark.parametrize("size", [96, 192])
def test_things_stay_in_their_cells(size: int) -> None:
    """Outside of the cells that hold a thing there is background and nothing else."""
    cell = size // GRID
    for seed in range(100):
        scene = sample_scene(seed)
        pixels = render(scene, size).copy()
        for thing in scene.things:
            rows = slice(thing.row * cell, thing.row * cell + cell)
            columns = slice(thing.column * cell, thing.column * cell + cell)
            assert (pixels[rows, columns] != PALETTE[scene.background]).any()
            pixels[rows, columns] = PALETTE[scene.background]
        assert (pixels == PALETTE[scene.background]).all()


@pytest.mark.parametrize(
    "attribute, values",
    [("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("texture", TEXTURES)],
)
@pytest.mark.parametrize("size", [48, 96])
def test_every_value_of_an_attribute_shows(
    attribute: str, values: tuple[str, ...], size: int
) -> None:
    """A twentieth of a large thing's own cell differs at least, whatever else the thing is."""
    for other in ("circle", "heart") if attribute != "shape" else ("",):
        kept = {"shape": other} if other else {}
        pictures = [render(alone(**kept, **{attribute: v}), size).astype(int) for v in values]
        for i, one in enumerate(pictures):
            for two in pictures[:i]:
                differing = (abs(one - two).max(axis=2) > 24).sum()
                assert differing > (size / GRID) ** 2 / 20


def test_edges_are_antialiased_and_areas_exact() -> None:
    """The grey levels of a drawn circle add up to its area, to half a percent."""
    black_on_white = render(alone(shape="circle", colour="red"), 96).astype(float)[..., 1]
    white, red = PALETTE["white"][1], PALETTE["red"][1]
    area = ((white - black_on_white) / (white - red)).sum()
    assert area == pytest.approx(np.pi * (0.9 * RADII["large"] * 96) ** 2, rel=0.005)
    assert len(np.unique(black_on_white)) > 5


def test_a_picture_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 8 pixels"):
        render(alone(), 8)
