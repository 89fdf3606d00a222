"""Questions about a scene with their answers, and dialogs of several."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from blip_fast.scenes.claims import DIRECTIONS, Claim, Mention, Relation, is_true
from blip_fast.scenes.language import caption, mention_words, place_words, spoil
from blip_fast.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    MAX_THINGS,
    SHAPES,
    Scene,
    Thing,
    held_out,
)

KINDS = ("count", "colour", "exists", "compare", "where")

PLACES = tuple(place_words((row, column)) for row in range(GRID) for column in range(GRID))
ANSWERS = (
    *("yes", "no"),
    *(str(number) for number in range(MAX_THINGS + 1)),
    *COLOURS,
    *BACKGROUNDS,
    *PLACES,
)

_TRIES = 40


@dataclass(frozen=True)
class Question:
    """`kind` is one of KINDS, `answer` one of ANSWERS."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Dialog:
    """Questions that lean on those before them; "it" is the thing spoken of last."""

    caption: str
    rounds: tuple[tuple[str, str], ...]


def ask(scene: Scene, rng: random.Random, kind: str | None = None) -> Question:
    """A question about a scene.

    Answers that are yes or no are drawn before the question, so that both come as often.

    Args:
        kind: one of KINDS; any where none is given. Where a scene allows none of that kind (no
            thing can be told from the others by name, so that "where" has nothing to ask), the
            things are counted.
    """
    chosen = kind or rng.choice(KINDS)
    wanted = rng.random() < 0.5
    for _ in range(_TRIES):
        asked = _ASKED[chosen](scene, rng, wanted)
        if asked is not None:
            return Question(*asked, chosen)
    return Question(*_count(scene, rng, wanted), "count")


def dialog(scene: Scene, rng: random.Random) -> Dialog:
    """A dialog about one thing, after a caption; of four rounds."""
    thing = rng.choice(scene.things)
    others = len(scene.things) - 1
    size = rng.choice(("small", "large"))
    first = unique_mention(thing, scene, without=()) or _by_place(thing)
    rounds = [
        (f"do you see the {mention_words(first)}?", "yes"),
        ("what color is it?", thing.colour),
        (f"is it {size}?", _yes(thing.size == size)),
        ("how many other shapes are there?", str(others)),
    ]
    if first.place is None:
        rounds[2:3] = [("where is it?", _where(thing))] if rng.random() < 0.5 else rounds[2:3]
    if first.colour is not None:
        rounds[1] = ("what texture does it have?", thing.texture)
    return Dialog(caption(scene, rng), tuple(rounds))


def unique_mention(thing: Thing, scene: Scene, without: tuple[str, ...]) -> Mention | None:
    """The shortest name that is this thing's alone; None where there is none without a place."""
    for names in (
        ("shape",),
        ("colour", "shape"),
        ("size", "shape"),
        ("texture", "shape"),
        ("size", "colour", "shape"),
        ("texture", "colour", "shape"),
        ("size", "texture", "shape"),
    ):
        if not set(names) & set(without):
            mention = Mention(**{name: getattr(thing, name) for name in names})
            if sum(mention.matches(t) for t in scene.things) == 1:
                return mention
    return None


def _by_place(thing: Thing) -> Mention:
    return Mention(place=(thing.row, thing.column))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _where(thing: Thing) -> str:
    return place_words((thing.row, thing.column))


_Asked = tuple[str, str] | None


def _count(scene: Scene, rng: random.Random, wanted: bool) -> tuple[str, str]:
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    if rng.random() < 0.75:
        thing = rng.choice(scene.things)
        colour, shape = thing.colour, thing.shape
    wordings = [Mention(shape=shape), Mention(colour=colour), Mention()]
    present = any((t.colour, t.shape) == (colour, shape) for t in scene.things)
    if present or not held_out(colour, shape):
        wordings.append(Mention(shape, colour))
    mention = rng.choice(wordings)
    number = sum(mention.matches(t) for t in scene.things)
    what = mention_words(mention, plural=True)
    text = rng.choice((f"how many {what} are there?", f"how many {what} do you see?"))
    return text, str(number)


def _colour(scene: Scene, rng: random.Random, wanted: bool) -> _Asked:
    if rng.random() < 0.1:
        return "what color is the background?", scene.background
    thing = rng.choice(scene.things)
    mention = unique_mention(thing, scene, without=("colour",))
    if mention is None or rng.random() < 0.2:
        mention = _by_place(thing)
    what = mention_words(mention)
    text = rng.choice((f"what color is the {what}?", f"what is the color of the {what}?"))
    return text, thing.colour


def _exists(scene: Scene, rng: random.Random, wanted: bool) -> _Asked:
    thing = rng.choice(scene.things)
    colour, size, texture = (("colour", "shape"), ("size", "shape"), ("texture", "shape"))
    stated: tuple[str, ...] = rng.choice((("shape",), colour, colour, size, texture))
    mention = Mention(**{name: getattr(thing, name) for name in stated})
    claim = Claim((mention,))
    if not wanted:
        wrong = spoil(claim, scene, rng.choice(stated), rng)
        if wrong is None:
            return None
        claim = wrong
    return f"is there a {mention_words(claim.mentions[0])}?", _yes(wanted)


def _compare(scene: Scene, rng: random.Random, wanted: bool) -> _Asked:
    way = rng.choice((_compare_numbers, _compare_sizes, _compare_places, _compare_colours))
    asked = way(scene, rng)
    return asked if asked is not None and asked[1] == _yes(wanted) else None


def _compare_numbers(scene: Scene, rng: random.Random) -> _Asked:
    shapes = rng.sample(SHAPES, 2)
    present = rng.choice(scene.things).shape
    if present not in shapes:
        shapes[rng.randrange(2)] = present
    one, other = (Mention(shape=s) for s in shapes)
    numbers = [sum(m.matches(t) for t in scene.things) for m in (one, other)]
    more = rng.random() < 0.5
    truth = numbers[0] > numbers[1] if more else numbers[0] < numbers[1]
    words = mention_words(one, plural=True), mention_words(other, plural=True)
    return f"are there {'more' if more else 'fewer'} {words[0]} than {words[1]}?", _yes(truth)


def _pair(scene: Scene, rng: random.Random, without: tuple[str, ...]) -> list[tuple[Thing, str]]:
    """Two things with the names that are theirs alone; none where there are no two such things."""
    named = [(t, unique_mention(t, scene, without)) for t in scene.things]
    usable = [(t, mention_words(m)) for t, m in named if m is not None]
    return rng.sample(usable, 2) if len(usable) > 1 else []


def _compare_sizes(scene: Scene, rng: random.Random) -> _Asked:
    pair = _pair(scene, rng, without=("size",))
    if not pair:
        return None
    (one, name), (other, its_name) = pair
    same = rng.random() < 0.3
    if same:
        return f"are the {name} and the {its_name} the same size?", _yes(one.size == other.size)
    larger = rng.random() < 0.5
    truth = (one.size, other.size) == (("large", "small") if larger else ("small", "large"))
    return f"is the {name} {'larger' if larger else 'smaller'} than the {its_name}?", _yes(truth)


def _compare_colours(scene: Scene, rng: random.Random) -> _Asked:
    pair = _pair(scene, rng, without=("colour",))
    if not pair:
        return None
    (one, name), (other, its_name) = pair
    return f"are the {name} and the {its_name} the same color?", _yes(one.colour == other.colour)


def _compare_places(scene: Scene, rng: random.Random) -> _Asked:
    pair = _pair(scene, rng, without=())
    if not pair:
        return None
    (one, name), (other, its_name) = pair
    direction = rng.choice(DIRECTIONS)
    mentions = [unique_mention(t, scene, ()) for t in (one, other)]
    claim = Claim(tuple(m for m in mentions if m), (Relation(0, direction, 1),))
    words = f"{direction} of" if direction in ("left", "right") else direction
    return f"is the {name} {words} the {its_name}?", _yes(is_true(claim, scene))


def _where_is(scene: Scene, rng: random.Random, wanted: bool) -> _Asked:
    thing = rng.choice(scene.things)
    mention = unique_mention(thing, scene, without=())
    if mention is None:
        return None
    if mention.colour is None and rng.random() < 0.5:
        mention = dataclasses.replace(mention, colour=thing.colour)
    return f"where is the {mention_words(mention)}?", _where(thing)


# `wanted`: whether the answer is to be yes, where it is yes or no.
_ASKED: dict[str, Callable[[Scene, random.Random, bool], _Asked]] = {
    "count": _count,
    "colour": _colour,
    "exists": _exists,
    "compare": _compare,
    "where": _where_is,
}
