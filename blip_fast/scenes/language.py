"""Captions: true claims of a scene, put into words in many ways; and claims made wrong.

All texts are lower-case words of the vocabulary and go on from the prompt "a picture of ".
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from blip_fast.scenes.claims import (
    DIRECTIONS,
    OF_A_THING,
    Claim,
    Direction,
    Mention,
    Relation,
    is_true,
    lies,
)
from blip_fast.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    MAX_THINGS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    held_out,
)

# The attributes that `spoil` can make wrong.
SPOILED = ("count", "shape", "colour", "size", "texture", "position", "relation")

_NUMBERS = ("zero", "one", "two", "three", "four")
_SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
_TEXTURE_WORDS = {"solid": ("solid", "plain"), "striped": ("striped",), "dotted": ("dotted",)}
_TEXTURE_NOUNS = {"striped": "stripes", "dotted": "dots"}
_RELATION_WORDS: dict[Direction, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_ROW_WORDS, _COLUMN_WORDS = ("top", "", "bottom"), ("left", "", "right")
_PLAINLY_PLACED: dict[tuple[int | None, int | None], str] = {
    (row, column): "in the center" if row == column == 1 else f"at the {place}".rstrip()
    for row, place_row in enumerate(("top", "center", "bottom"))
    for column, place_column in enumerate(("left", "center", "right"))
    for place in [f"{place_row} {place_column}"]
}
_VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
_TRIES = 60


def caption(scene: Scene, rng: random.Random) -> str:
    """A true caption."""
    return speak(claim_of(scene, rng), rng)


def claim_of(scene: Scene, rng: random.Random, focus: str | None = None) -> Claim:
    """Something true of a scene.

    Args:
        focus: a kind of `SPOILED` to speak of where the scene allows it.
    """
    things = list(scene.things)
    if focus == "count":
        claim = _counted(things, rng)
    elif focus == "relation" or (focus is None and rng.random() < 0.3):
        claim = _related(things, rng) or _listed(things, rng, focus)
    elif focus is None and rng.random() < 0.1:
        claim = _counted(things, rng)
    else:
        claim = _listed(things, rng, focus)
    if rng.random() < 0.15:
        claim = dataclasses.replace(claim, background=scene.background)
    return claim


def spoil(claim: Claim, scene: Scene, kind: str, rng: random.Random) -> Claim | None:
    """The claim with one attribute wrong, false of the scene; None where there is no such one.

    A thing that no training picture shows is not mentioned unless the claim did, so that its
    mere name does not give the false text away.
    """
    spoiled = [c for c in _changed(claim, kind) if _speakable(c, claim)]
    rng.shuffle(spoiled)
    return next((c for c in spoiled if not is_true(c, scene)), None)


def false_caption(scene: Scene, rng: random.Random, kind: str | None = None) -> tuple[str, str]:
    """A caption with one attribute wrong, and which.

    Args:
        kind: one of `SPOILED`; any where none is given.

    Raises:
        ValueError: where the scene has no such caption, as no relation in a scene of one thing.
    """
    for _ in range(_TRIES):
        chosen = kind or rng.choice(SPOILED)
        wrong = spoil(claim_of(scene, rng, focus=chosen), scene, chosen, rng)
        if wrong is not None:
            return speak(wrong, rng), chosen
    raise ValueError(f"no caption of this scene of {len(scene.things)} things has a wrong {kind}")


def telling_claim(scene: Scene, other: Scene, kind: str, rng: random.Random) -> Claim | None:
    """A claim that is true of `scene` and false of `other`, about `kind` if possible."""
    for attempt in range(_TRIES):
        claim = claim_of(scene, rng, focus=kind if attempt < _TRIES // 2 else None)
        if not is_true(claim, other):
            return claim
    return None


def speak(claim: Claim, rng: random.Random) -> str:
    """A claim in words; the random choices are of words alone, never of what is said."""
    objects = {relation.object for relation in claim.relations}
    items = []
    for number, mention in enumerate(claim.mentions):
        if number in objects:
            continue
        text = _spoken(mention, rng)
        for relation in claim.relations:
            if relation.subject == number:
                words = rng.choice(_RELATION_WORDS[relation.direction])
                text = f"{text} {words} {_spoken(claim.mentions[relation.object], rng)}"
        items.append(text)
    text = items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    if claim.background is not None:
        text = f"{text} on a {claim.background} background"
    return text


def place_words(place: tuple[int | None, int | None]) -> str:
    """A place of the grid: "top left", "left", "top", "center"."""
    row, column = (1 if side is None else side for side in place)
    words = f"{_ROW_WORDS[row]} {_COLUMN_WORDS[column]}".strip()
    return words or "center"


def mention_words(mention: Mention, plural: bool = False) -> str:
    """A mention without its article or number: "small red circle", "shapes at the top left"."""
    words = [getattr(mention, name) for name in ("size", "texture", "colour")]
    noun = _noun(mention.shape or "shape", 2 if plural else 1)
    text = " ".join([*(word for word in words if word is not None), noun])
    return text if mention.place is None else f"{text} {_PLAINLY_PLACED[mention.place]}"


def _spoken(mention: Mention, rng: random.Random) -> str:
    number = 1 if mention.number is None else mention.number
    words = [] if mention.size is None else [rng.choice(_SIZE_WORDS[mention.size])]
    after = ""
    if mention.texture in _TEXTURE_NOUNS and rng.random() < 0.25:
        after = f" with {_TEXTURE_NOUNS[mention.texture]}"
    elif mention.texture is not None:
        words.append(rng.choice(_TEXTURE_WORDS[mention.texture]))
    if mention.colour is not None:
        words.append(mention.colour)
    words.append(_noun(mention.shape or rng.choice(("shape", "object")), number))
    first = _NUMBERS[number]
    if mention.number is None:
        first = "an" if words[0][0] in "aeiou" else "a"
    text = f"{first} {' '.join(words)}{after}"
    return text if mention.place is None else f"{text} {_placed(mention.place, rng)}"


def _noun(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _placed(place: tuple[int | None, int | None], rng: random.Random) -> str:
    row, column = place
    words = place_words(place)
    if place == (1, 1):
        return rng.choice(("in the center", "in the middle"))
    if None not in place and 1 not in place:
        return rng.choice((f"at the {words}", f"in the {words} corner", f"in the {words}"))
    if row is None:
        return rng.choice((f"on the {words}", f"on the {words} side"))
    if column is None:
        return f"at the {words}"
    return f"at the {words} center" if row != 1 else f"at the center {words}"


def _mention(thing: Thing, rng: random.Random, focus: str | None, share: float) -> Mention:
    """A thing by its shape, mostly its colour, and more with probability `share` each."""
    stated: dict[str, Any] = {"shape": thing.shape}
    for name, likely in (("colour", 0.9), ("size", share), ("texture", share)):
        if name == focus or rng.random() < likely:
            stated[name] = getattr(thing, name)
    if focus != "shape" and "colour" in stated and rng.random() < 0.04:
        del stated["shape"]
    return Mention(**stated)


def _somewhere(thing: Thing, rng: random.Random) -> tuple[int | None, int | None]:
    """The thing's place, exactly or along one side."""
    if rng.random() < 0.3:
        if thing.column != 1 and rng.random() < 0.5:
            return None, thing.column
        if thing.row != 1:
            return thing.row, None
    return thing.row, thing.column


def _listed(things: list[Thing], rng: random.Random, focus: str | None) -> Claim:
    """The things one after the other: all of them, in reading order, if nothing is in focus."""
    if focus is not None and len(things) > 2:
        things = sorted(rng.sample(things, 2), key=things.index)
    share = (0.6, 0.4, 0.25, 0.25)[len(things) - 1]
    with_places = len(things) < 3 and rng.random() < 0.5 or focus == "position"
    mentions: list[Mention] = []
    kinds = [(thing.colour, thing.shape) for thing in things]
    for thing, kind in zip(things, kinds, strict=True):
        if with_places or focus is not None:
            mention = _mention(thing, rng, focus, share)
            place = _somewhere(thing, rng) if with_places else None
            mentions.append(dataclasses.replace(mention, place=place))
        elif kinds.count(kind) == 1:
            mentions.append(_mention(thing, rng, focus, share))
        elif all(kind != (m.colour, m.shape) for m in mentions):
            mentions.append(Mention(thing.shape, thing.colour, number=kinds.count(kind)))
    return Claim(tuple(mentions))


def _counted(things: list[Thing], rng: random.Random) -> Claim:
    """How many there are of something."""
    thing = rng.choice(things)
    shape, colour = Mention(shape=thing.shape), Mention(colour=thing.colour)
    both = Mention(thing.shape, thing.colour)
    # The more a mention says, the fewer other pictures it is true of: such are said more often.
    likes = [Mention(), shape, shape, colour, colour, both, both, both]
    several = [like for like in likes if sum(like.matches(t) for t in things) > 1]
    like = rng.choice(several or likes)
    number = sum(like.matches(t) for t in things)
    return Claim((dataclasses.replace(like, number=number),))


def _related(things: list[Thing], rng: random.Random) -> Claim | None:
    """Two things and where one is, seen from the other; None where there is one thing."""
    if len(things) < 2:
        return None
    one, other = rng.sample(things, 2)
    ways = [d for d in DIRECTIONS if lies(one, d, other)]
    mentions = _mention(one, rng, None, 0.15), _mention(other, rng, None, 0.15)
    return Claim(mentions, (Relation(0, rng.choice(ways), 1),))


def _changed(claim: Claim, kind: str) -> list[Claim]:
    """All claims with one other value of this kind."""
    changed: list[Claim] = []
    if kind == "relation":
        opposite: dict[Direction, Direction] = {
            "left": "right", "right": "left", "above": "below", "below": "above",
        }  # fmt: skip
        for i, relation in enumerate(claim.relations):
            turned = dataclasses.replace(relation, direction=opposite[relation.direction])
            others = claim.relations[:i] + (turned,) + claim.relations[i + 1 :]
            changed.append(dataclasses.replace(claim, relations=others))
        return changed
    if kind == "background" and claim.background is not None:
        backgrounds = [b for b in BACKGROUNDS if b != claim.background]
        return [dataclasses.replace(claim, background=b) for b in backgrounds]
    for i, mention in enumerate(claim.mentions):
        for new in _other_mentions(mention, kind):
            mentions = claim.mentions[:i] + (new,) + claim.mentions[i + 1 :]
            changed.append(dataclasses.replace(claim, mentions=mentions))
    return changed


def _other_mentions(mention: Mention, kind: str) -> list[Mention]:
    if kind in OF_A_THING:
        value = getattr(mention, kind)
        values: Sequence[str] = _VALUES[kind] if value is not None else ()
        stated: dict[str, Any] = vars(mention)
        return [Mention(**{**stated, kind: v}) for v in values if v != value]
    if kind == "position" and mention.place is not None:
        return [dataclasses.replace(mention, place=p) for p in _other_places(mention.place)]
    if kind == "count" and mention.number is not None:
        near = (mention.number - 1, mention.number + 1)
        numbers = [n for n in near if 1 <= n <= MAX_THINGS]
        return [dataclasses.replace(mention, number=n) for n in numbers]
    return []


def _other_places(
    place: tuple[int | None, int | None],
) -> list[tuple[int | None, int | None]]:
    """Places said with as many words."""
    row, column = place
    if row is None:
        return [(None, 2 - column)] if column is not None else []
    if column is None:
        return [(2 - row, None)]
    cells = [(r, c) for r in range(GRID) for c in range(GRID)]
    return [cell for cell in cells if cell != place]


def _speakable(new: Claim, old: Claim) -> bool:
    known = {(m.colour, m.shape) for m in old.mentions}
    pairs = {(m.colour, m.shape) for m in new.mentions} - known
    return not any(c is not None and s is not None and held_out(c, s) for c, s in pairs)
