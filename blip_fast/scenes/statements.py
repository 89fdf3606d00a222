"""Sentences about two pictures, true or false, as NLVR2 has them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from blip_fast.scenes.claims import Mention
from blip_fast.scenes.language import mention_words
from blip_fast.scenes.world import MAX_THINGS, SHAPES, Scene

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_TRIES = 60


@dataclass(frozen=True)
class Statement:
    """`label` says whether the sentence is true of the pair."""

    sentence: str
    label: bool


def state(left: Scene, right: Scene, rng: random.Random) -> Statement:
    """A sentence about two scenes. Its truth is drawn first, so that both come as often."""
    wanted = rng.random() < 0.5
    for _ in range(_TRIES):
        sentence, label = rng.choice(_WAYS)(left, right, rng)
        if label == wanted:
            return Statement(sentence, label)
    total = len(left.things) + len(right.things)
    return Statement(_in_all(total if wanted else total % (2 * MAX_THINGS) + 1), wanted)


def _in_all(number: int) -> str:
    verb = "is one shape" if number == 1 else f"are {_NUMBERS[number]} shapes"
    return f"there {verb} in the two pictures together"


def _some_mention(left: Scene, right: Scene, rng: random.Random) -> Mention:
    """Things of either picture, by shape or colour or both."""
    thing = rng.choice((*left.things, *right.things))
    ways = (("shape",), ("shape",), ("colour",), ("shape", "colour"))
    return Mention(**{name: getattr(thing, name) for name in rng.choice(ways)})


def _number(mention: Mention, scene: Scene) -> int:
    return sum(mention.matches(thing) for thing in scene.things)


def _side(left: Scene, right: Scene, rng: random.Random) -> tuple[str, Scene]:
    return rng.choice((("left", left), ("right", right)))


def _counted(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    mention = _some_mention(left, right, rng)
    name, scene = _side(left, right, rng)
    number = max(1, _number(mention, scene) + rng.choice((-1, 0, 0, 1)))
    what = mention_words(mention, plural=number != 1)
    sentence = f"the {name} picture has exactly {_NUMBERS[number]} {what}"
    return sentence, _number(mention, scene) == number


def _which(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    mention = _some_mention(left, right, rng)
    what = f"a {mention_words(mention)}"
    having = sum(_number(mention, scene) > 0 for scene in (left, right))
    words, number = rng.choice(
        (("both pictures have", 2), ("each picture has", 2), ("only one picture has", 1))
    )
    return f"{words} {what}", having == number


def _neither(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    shape = Mention(shape=rng.choice(SHAPES))
    having = any(_number(shape, scene) for scene in (left, right))
    return f"neither picture has a {mention_words(shape)}", not having


def _more(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    mention = Mention() if rng.random() < 0.5 else _some_mention(left, right, rng)
    (name, one), (other_name, other) = rng.sample((("left", left), ("right", right)), 2)
    what = mention_words(mention, plural=True)
    sentence = f"there are more {what} in the {name} picture than in the {other_name} picture"
    return sentence, _number(mention, one) > _number(mention, other)


def _total(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    total = len(left.things) + len(right.things)
    number = min(2 * MAX_THINGS, max(1, total + rng.choice((-1, 0, 0, 1))))
    return _in_all(number), number == total


def _background(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    same = left.background == right.background
    return "the two pictures have the same background", same


_Way = Callable[[Scene, Scene, random.Random], tuple[str, bool]]
_WAYS: tuple[_Way, ...] = (_counted, _counted, _which, _which, _neither, _more, _total, _background)
