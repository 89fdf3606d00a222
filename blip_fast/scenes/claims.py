"""What a caption claims of a scene, and whether it is so.

A claim mentions things by some of their attributes, relates them, and may name the background.
It is true where its mentions can be laid on different things of the scene so that all holds: "a"
means at least one, a number means exactly that many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Literal

from blip_fast.scenes.world import Scene, Thing

Direction = Literal["left", "right", "above", "below"]
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "above", "below")

# What a verdict tells apart, in the order of the model card's table.
KINDS = ("count", "shape", "colour", "size", "texture", "position", "relation", "background")
OF_A_THING = ("shape", "colour", "size", "texture")

_MAX_SLOTS = 6  # more things than any scene has: the verdict is settled, the rest is not searched


@dataclass(frozen=True)
class Mention:
    """Things named by some of their attributes; None where one is not stated.

    Attributes:
        number: exactly so many things match; None for at least `least`.
        place: row and column of the grid, each None where it is left open.
    """

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    number: int | None = None
    least: int = 1
    place: tuple[int | None, int | None] | None = None

    @property
    def slots(self) -> int:
        """Things it takes."""
        return self.least if self.number is None else self.number

    def stated(self) -> list[str]:
        """The kinds of claims made of each of its things."""
        names = [name for name in OF_A_THING if getattr(self, name) is not None]
        return names if self.place is None else [*names, "position"]

    def holds(self, name: str, thing: Thing) -> bool:
        if name == "position":
            assert self.place is not None
            row, column = self.place
            return row in (None, thing.row) and column in (None, thing.column)
        return bool(getattr(self, name) == getattr(thing, name))

    def matches(self, thing: Thing) -> bool:
        return all(self.holds(name, thing) for name in self.stated())


@dataclass(frozen=True)
class Relation:
    """All things of mention `subject` lie in a direction from all of mention `object`."""

    subject: int
    direction: Direction
    object: int


@dataclass(frozen=True)
class Claim:
    mentions: tuple[Mention, ...]
    relations: tuple[Relation, ...] = ()
    background: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What is true of a claim, kind by kind, under its most favourable reading.

    Attributes:
        understood: False where the text makes no claim that is known; then the rest is empty.
        stated: kind to how often it is claimed.
        right: kind to how often rightly.
    """

    understood: bool
    stated: dict[str, int] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)

    @property
    def true(self) -> bool:
        return self.understood and self.stated == self.right

    @property
    def word(self) -> Literal["true", "false", "not understood"]:
        if not self.understood:
            return "not understood"
        return "true" if self.true else "false"


NOT_UNDERSTOOD = Verdict(understood=False)


def lies(one: Thing, direction: Direction, other: Thing) -> bool:
    """Whether `one` is left or right of, above or below `other`, by a cell at least."""
    if direction in ("left", "right"):
        return one.column < other.column if direction == "left" else one.column > other.column
    return one.row < other.row if direction == "above" else one.row > other.row


def is_true(claim: Claim, scene: Scene) -> bool:
    """Whether a claim is true: `judge_claim(...).true`, a hundred times as fast where it is not."""
    if claim.background not in (None, scene.background):
        return False
    fitting = []
    for mention in claim.mentions:
        things = [t for t in scene.things if mention.matches(t)]
        if len(things) < mention.slots or mention.number not in (None, len(things)):
            return False
        fitting.append(list(combinations(things, mention.slots)))
    return any(_consistent(claim, found) for found in product(*fitting))


def _consistent(claim: Claim, found: Sequence[Sequence[Thing]]) -> bool:
    """Whether no thing is taken twice, and all relations hold."""
    taken = [id(thing) for things in found for thing in things]
    return len(set(taken)) == len(taken) and all(
        lies(a, relation.direction, b)
        for relation in claim.relations
        for a in found[relation.subject]
        for b in found[relation.object]
    )


def judge_claim(claim: Claim, scene: Scene) -> Verdict:
    """Judge a claim: its reading with the fewest faults, the first one among equals."""
    slots = [number for number, m in enumerate(claim.mentions) for _ in range(m.slots)]
    slots = slots[:_MAX_SLOTS]
    best: list[_Mark] | None = None
    for laid in _readings(len(slots), len(scene.things)):
        marks = _marks(claim, slots, laid, scene)
        if best is None or _faults(marks) < _faults(best):
            best = marks
            if not _faults(best):
                break
    assert best is not None  # there is always the reading that finds no thing at all
    stated: dict[str, int] = {}
    right: dict[str, int] = {}
    for kind in KINDS:
        of_kind = [good for name, good, _ in best if name == kind]
        if of_kind:
            stated[kind], right[kind] = len(of_kind), sum(of_kind)
    return Verdict(True, stated, right)


# Kind, truth, and what a reading loses where it is false. A thing that is not there costs more
# than one with two wrong attributes, unless it is one of a number of things: a reading looks for
# what was meant.
_Mark = tuple[str, bool, float]
_MISSING, _MISSING_OF_NUMBER = 3.0, 1.5


def _faults(marks: Sequence[_Mark]) -> float:
    return sum(cost for _, good, cost in marks if not good)


def _readings(slots: int, things: int) -> Iterator[tuple[int | None, ...]]:
    """All ways to lay slots on different things; None for no thing."""

    def lay(slot: int, free: tuple[int, ...]) -> Iterator[tuple[int | None, ...]]:
        if slot == slots:
            yield ()
            return
        for thing in free:
            for rest in lay(slot + 1, tuple(t for t in free if t != thing)):
                yield (thing, *rest)
        for rest in lay(slot + 1, free):
            yield (None, *rest)

    return lay(0, tuple(range(things)))


def _marks(
    claim: Claim, slots: Sequence[int], laid: Sequence[int | None], scene: Scene
) -> list[_Mark]:
    """Everything that is claimed, under one reading."""
    marks: list[_Mark] = []
    found: list[list[Thing]] = [[] for _ in claim.mentions]
    for slot, place in zip(slots, laid, strict=True):
        if place is not None:
            found[slot].append(scene.things[place])
    for mention, things in zip(claim.mentions, found, strict=True):
        marks += [(name, mention.holds(name, t), 1.0) for t in things for name in mention.stated()]
        complete = len(things) == mention.slots
        if mention.number is not None:
            all_match = all(mention.matches(t) for t in things)
            exact = sum(mention.matches(t) for t in scene.things) == mention.number
            marks.append(("count", complete and (exact or not all_match), _MISSING_OF_NUMBER))
        elif not complete:
            marks.append(("count", False, _MISSING))
    for relation in claim.relations:
        pairs = [(a, b) for a in found[relation.subject] for b in found[relation.object]]
        if pairs:
            right = all(lies(a, relation.direction, b) for a, b in pairs)
            marks.append(("relation", right, 1.0))
    if claim.background is not None:
        marks.append(("background", claim.background == scene.background, 1.0))
    return marks
