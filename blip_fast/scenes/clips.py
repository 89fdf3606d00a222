"""Moving pictures in words: what moves, and where to."""

from __future__ import annotations

import random
from typing import Literal

from blip_fast.scenes.claims import Mention
from blip_fast.scenes.language import mention_words
from blip_fast.scenes.parse import parse
from blip_fast.scenes.world import Clip

_DIRECTIONS = {
    "to the left": "left",
    "left": "left",
    "to the right": "right",
    "right": "right",
    "up": "up",
    "down": "down",
}
_MOVING = " moving "


def clip_caption(clip: Clip, rng: random.Random) -> str:
    """A true caption: the thing that moves, by colour and shape and sometimes more."""
    thing = clip.frames[0].things[0]
    stated = {"shape": thing.shape, "colour": thing.colour}
    for name in ("size", "texture"):
        if rng.random() < 0.3:
            stated[name] = getattr(thing, name)
    words = mention_words(Mention(**stated))  # type: ignore[arg-type]
    ways = [way for way, direction in _DIRECTIONS.items() if direction == clip.direction]
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}{_MOVING}{rng.choice(ways)}"


def judge_clip(text: str, clip: Clip) -> Literal["true", "false", "not understood"]:
    """Judge a text of the form "THING moving DIRECTION" against a clip; never raises."""
    what, moving, way = text.lower().strip(" .!").partition(_MOVING)
    claim = parse(what)
    if not moving or way not in _DIRECTIONS or claim is None or claim.relations:
        return "not understood"
    if len(claim.mentions) != 1 or claim.mentions[0].slots != 1:
        return "not understood"
    fits = claim.mentions[0].matches(clip.frames[0].things[0])
    return "true" if fits and _DIRECTIONS[way] == clip.direction else "false"
