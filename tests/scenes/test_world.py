from __future__ import annotations

import random

import pytest

from blip_fast.scenes.world import (
    COLOURS,
    HELD_OUT,
    MAX_THINGS,
    SHAPES,
    SPLITS,
    Scene,
    Split,
    sample_clip,
    sample_scene,
    scene_seed,
    twin,
)

SEEDS = range(300)


def test_a_scene_is_a_function_of_its_seed() -> None:
    assert [sample_scene(s) for s in SEEDS] == [sample_scene(s) for s in SEEDS]
    assert len({sample_scene(s) for s in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_have_one_to_four_things_in_different_cells(split: Split) -> None:
    scenes = [sample_scene(s, split) for s in SEEDS]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}
    for scene in scenes:
        cells = [t.cell for t in scene.things]
        assert cells == sorted(set(cells))
        assert Scene.from_dict(scene.to_dict()) == scene


def test_held_out_pairs_are_drawn_in_their_split_alone() -> None:
    def pairs(split: Split) -> set[tuple[str, str]]:
        scenes = (sample_scene(s, split) for s in range(1500))
        return {(t.colour, t.shape) for scene in scenes for t in scene.things}

    assert pairs("unseen") == HELD_OUT
    assert pairs("train") == pairs("seen")
    assert len(pairs("train")) == len(COLOURS) * len(SHAPES) - len(HELD_OUT)
    assert not pairs("train") & HELD_OUT
    assert {c for c, _ in pairs("train")} == set(COLOURS)
    assert {s for _, s in pairs("train")} == set(SHAPES)


def test_splits_share_no_seed() -> None:
    seeds = [scene_seed(split, n, 0) for split in SPLITS for n in range(1000)]
    assert len(set(seeds)) == len(seeds)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="0; a scene has 1 to 4"):
        sample_scene(0, things=0)
    with pytest.raises(ValueError, match="'test'; it must be one of train, seen, unseen"):
        sample_scene(0, "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames is 1"):
        sample_clip(0, frames=1)


@pytest.mark.parametrize("split", SPLITS)
def test_twins_differ_in_what_they_say(split: Split) -> None:
    seen = set()
    for seed in SEEDS:
        scene = sample_scene(seed, split)
        other, change = twin(scene, random.Random(seed), split)
        seen.add(change)
        assert other.background == scene.background and 1 <= len(other.things) <= MAX_THINGS
        held = [(t.colour, t.shape) in HELD_OUT for t in other.things]
        assert all(held) if split == "unseen" else not any(held)
        mine, its = set(scene.things), set(other.things)
        if change == "count":
            assert abs(len(scene.things) - len(other.things)) == 1
        elif change == "relation":
            assert len(mine - its) == 2 and {t.cell for t in mine} == {t.cell for t in its}
        elif change == "position":
            assert len({t.cell for t in mine} ^ {t.cell for t in its}) == 2
        else:
            (one,), (new,) = mine - its, its - mine
            changed = {n for n in vars(one) if getattr(one, n) != getattr(new, n)}
            assert changed == {change}
    assert len(seen) == (5 if split == "unseen" else 7)  # no held-out pair is a step from another


def test_a_clip_moves_one_thing_and_nothing_meets() -> None:
    directions = set()
    for seed in range(60):
        clip = sample_clip(seed, frames=5)
        directions.add(clip.direction)
        path = [scene.things[0] for scene in clip.frames]
        along = [t.x if clip.direction in ("left", "right") else t.y for t in path]
        forward = clip.direction in ("right", "down")
        assert along == sorted(along, reverse=not forward) and len(set(along)) == 5
        assert len({scene.things[1:] for scene in clip.frames}) == 1
        for scene in clip.frames:
            assert all(t.cell != scene.things[0].cell for t in scene.things[1:])
    assert directions == {"left", "right", "up", "down"}
