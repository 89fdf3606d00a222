"""Captions to claims. Whatever the text, the answer is a verdict: true, false, not understood.

A text is understood only as a whole: one word that does not belong and nothing is claimed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from blip_fast.scenes.claims import (
    NOT_UNDERSTOOD,
    Claim,
    Direction,
    Mention,
    Relation,
    Verdict,
    judge_claim,
)
from blip_fast.scenes.world import BACKGROUNDS, COLOURS, SHAPES, Scene

NUMBERS = {w: n for n, w in enumerate(("zero", "one", "two", "three", "four", "five", "six"))}
NUMBERS |= {str(n): n for n in range(10)}
SIZE_WORDS = {
    "small": "small", "little": "small", "tiny": "small",
    "large": "large", "big": "large", "huge": "large",
}  # fmt: skip
TEXTURE_WORDS = {
    "solid": "solid", "plain": "solid", "filled": "solid", "striped": "striped", "dotted": "dotted",
}  # fmt: skip
TEXTURE_NOUNS = {"stripes": "striped", "dots": "dotted"}
COLOUR_WORDS = {**{c: c for c in COLOURS}, "violet": "purple"}
BACKGROUND_WORDS = {**{b: b for b in BACKGROUNDS}, "grey": "gray"}
GENERIC = ("shape", "object", "thing")

_SINGULAR = {**{s: s for s in SHAPES}, **dict.fromkeys(GENERIC)}
_PLURALS = {"crosses": "cross", **{f"{s}s": s for s in (*SHAPES, *GENERIC) if s != "cross"}}
_PICTURES = ("picture", "photo", "image", "photograph", "drawing", "painting", "scene", "view")
_ROWS = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
_COLUMNS = {"left": 0, "right": 2}
_MIDDLES = ("center", "middle")
_VERTICAL: dict[str, Direction] = {
    "above": "above", "over": "above", "below": "below", "under": "below",
}  # fmt: skip
_MAX_WORDS = 80
_MAX_MENTIONS = 12


def judge(text: str, scene: Scene) -> Verdict:
    """Judge any text against a scene; never raises."""
    claim = parse(text)
    return NOT_UNDERSTOOD if claim is None else judge_claim(claim, scene)


def parse(text: str) -> Claim | None:
    """What a text claims; None where it is not understood as a whole."""
    words = re.findall(r"[a-z]+|[0-9]+|\S", text.lower())
    while words and words[-1] in ".!":
        words.pop()
    if not words or len(words) > _MAX_WORDS:
        return None
    try:
        return _Reader(words).caption()
    except _NotUnderstoodError:
        return None


class _NotUnderstoodError(Exception):
    """The text leaves the grammar; never seen outside of this file."""


class _Reader:
    """Recursive descent over the words.

    caption   = [lead] item {("," | "and" | ", and") item}
    item      = things {tail}
    things    = [article | number] {adjective} noun
    tail      = ["is" | "are"] (place | direction things) | texture | background
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [*words, ""]  # an empty word at the end, which nothing takes
        self.at = 0
        self.mentions: list[Mention] = []
        self.relations: list[Relation] = []
        self.background: str | None = None

    def caption(self) -> Claim:
        self._lead()
        self._item()
        while self._take(",", "and"):
            if self.words[self.at - 1] == ",":
                self._take("and")
            self._item()
        if self._word:
            raise _NotUnderstoodError
        return Claim(tuple(self.mentions), tuple(self.relations), self.background)

    @property
    def _word(self) -> str:
        return self.words[self.at]

    def _take(self, *words: str) -> bool:
        """Go past the next word if it is one of these."""
        if self._word in words and self._word:
            self.at += 1
            return True
        return False

    def _need(self, *words: str) -> str:
        if not self._take(*words):
            raise _NotUnderstoodError
        return self.words[self.at - 1]

    def _lead(self) -> None:
        start = self.at
        if self._take("there"):
            self._need("is", "are")
            return
        self._take("a", "an", "the", "this")
        if self._take(*_PICTURES) and (self._take("of", "with", "showing") or self._shows()):
            return
        self.at = start

    def _shows(self) -> bool:
        return self._take("shows") or self._take("has")

    def _item(self) -> None:
        subject = self._things()
        while self._tail(subject):
            continue

    def _things(self) -> int:
        """A mention; its number in the claim."""
        if len(self.mentions) == _MAX_MENTIONS:
            raise _NotUnderstoodError
        number, least, article = None, 1, False
        if self._take("a", "an", "the", "another"):
            article = True
        elif self._word in NUMBERS:
            number = NUMBERS[self._word]
            self.at += 1
        stated: dict[str, Any] = {}
        while adjective := self._adjective():
            kind, value = adjective
            if kind in stated:
                raise _NotUnderstoodError
            stated[kind] = value
        noun = self._need(*_SINGULAR, *_PLURALS)
        plural = noun in _PLURALS
        if plural and article or (number is not None and plural != (number != 1)):
            raise _NotUnderstoodError
        if plural and number is None:
            least = 2
        shape = _PLURALS.get(noun, noun)
        if shape not in GENERIC:
            stated["shape"] = shape
        self.mentions.append(Mention(number=number, least=least, **stated))
        return len(self.mentions) - 1

    def _adjective(self) -> tuple[str, str] | None:
        tables = (("size", SIZE_WORDS), ("texture", TEXTURE_WORDS), ("colour", COLOUR_WORDS))
        for kind, words in tables:
            if self._word in words:
                self.at += 1
                return kind, words[self.words[self.at - 1]]
        return None

    def _tail(self, subject: int) -> bool:
        start = self.at
        verb = self._take("is", "are")
        if self._place_or_relation(subject):
            return True
        if not verb and (self._texture(subject) or self._on_background()):
            return True
        self.at = start
        return False

    def _place_or_relation(self, subject: int) -> bool:
        if self._word in _VERTICAL:
            self.at += 1
            self._relate(subject, _VERTICAL[self.words[self.at - 1]])
            return True
        start = self.at
        preposition = self._take("in", "at", "on", "to", "near")
        self._take("the")
        row, column, middles, words = self._grid_words()
        if not words:
            self.at = start
            return False
        self._take("corner", "side", "edge")
        if self._take("of"):
            if self._take("the") and self._take(*_PICTURES):
                pass
            elif column is not None and words == 1:
                if self.words[self.at - 1] == "the":
                    self.at -= 1
                self._relate(subject, "left" if column == 0 else "right")
                return True
            else:
                raise _NotUnderstoodError
        if not preposition:
            raise _NotUnderstoodError
        self._put(subject, (1 if row is None and middles else row,
                            1 if column is None and middles else column))  # fmt: skip
        return True

    def _grid_words(self) -> tuple[int | None, int | None, int, int]:
        """Row, column, whether the middle is named, and how many words said so."""
        row = column = None
        middles = words = 0
        while words < 2:
            if row is None and self._word in _ROWS:
                row = _ROWS[self._word]
            elif column is None and self._word in _COLUMNS:
                column = _COLUMNS[self._word]
            elif not middles and self._word in _MIDDLES:
                middles = 1
            else:
                break
            self.at += 1
            words += 1
        return row, column, middles, words

    def _relate(self, subject: int, direction: Direction) -> None:
        other = self._things()
        self.relations.append(Relation(subject, direction, other))
        while self._tail(other):  # what follows belongs to the nearest thing
            continue

    def _put(self, subject: int, place: tuple[int | None, int | None]) -> None:
        self._restate(subject, "place", place)

    def _texture(self, subject: int) -> bool:
        if self._word == "with" and self.words[self.at + 1] in TEXTURE_NOUNS:
            self.at += 2
            self._restate(subject, "texture", TEXTURE_NOUNS[self.words[self.at - 1]])
            return True
        return False

    def _restate(self, subject: int, name: str, value: object) -> None:
        """Add what a tail says; a thing has one place and one texture."""
        mention = self.mentions[subject]
        if getattr(mention, name) is not None:
            raise _NotUnderstoodError
        self.mentions[subject] = Mention(**{**vars(mention), name: value})

    def _on_background(self) -> bool:
        start = self.at
        if self._take("on", "against", "with"):
            self._take("a", "the")
            if self._word in BACKGROUND_WORDS and self.words[self.at + 1] == "background":
                if self.background is not None:
                    raise _NotUnderstoodError
                self.background = BACKGROUND_WORDS[self._word]
                self.at += 2
                return True
        self.at = start
        return False
