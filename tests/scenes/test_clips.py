from __future__ import annotations

import random

import pytest

from blip_fast.scenes.clips import clip_caption, judge_clip
from blip_fast.scenes.world import COLOURS, sample_clip

CLIPS = [sample_clip(seed, frames=4) for seed in range(80)]


@pytest.mark.parametrize("way", [("left", "right"), ("up", "down")])
def test_captions_are_true_and_false_the_other_way(way: tuple[str, str]) -> None:
    judged = 0
    for seed, clip in enumerate(CLIPS):
        text = clip_caption(clip, random.Random(seed))
        assert judge_clip(text, clip) == "true"
        if clip.direction in way:
            other = way[1 - way.index(clip.direction)]
            assert judge_clip(text.replace(f" {clip.direction}", f" {other}"), clip) == "false"
            judged += 1
        colour = clip.frames[0].things[0].colour
        wrong = COLOURS[COLOURS.index(colour) - 1]
        assert judge_clip(text.replace(f" {colour} ", f" {wrong} "), clip) == "false"
    assert judged > 20


@pytest.mark.parametrize(
    "text", ["", "a red circle", "moving up", "a red circle moving", "a dog moving left", "moving"]
)
def test_other_texts_are_not_understood(text: str) -> None:
    assert judge_clip(text, CLIPS[0]) == "not understood"
