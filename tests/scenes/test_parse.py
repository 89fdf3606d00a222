"""Texts judged against one scene, and texts that are none of the language."""

from __future__ import annotations

import random
import string

import pytest

from blip_fast.scenes.parse import judge, parse
from blip_fast.scenes.world import Scene, Thing


def thing(words: str, row: int, column: int) -> Thing:
    size, texture, colour, shape = words.split()
    return Thing(shape, colour, size, texture, (column + 0.5) / 3, (row + 0.5) / 3)


SCENE = Scene(
    (
        thing("large solid red circle", 0, 0),
        thing("small striped blue star", 0, 2),
        thing("small dotted red circle", 1, 1),
        thing("large solid green ring", 2, 1),
    ),
    "white",
)

TRUE = """a red circle
a picture of a red circle
a large red circle in the top left corner
the small circle with dots in the middle
two circles
two red circles and a blue star
exactly
four shapes on a white background
a red circle to the left of a blue star
a star right of a circle
a green ring below a red circle at the top left
a ring under a small dotted circle
there is a plain green ring at the bottom
a big thing at the bottom, a star on the right side and a circle on the left
one star
circles
2 red circles.
a circle, a circle, a star, and a ring
a striped star at the top right of the picture
A Red Circle""".replace("exactly\n", "").splitlines()

FALSE = """a blue circle
a small red circle in the top left corner
a red circle at the bottom
three circles
one circle
three shapes
two blue stars
a circle right of a star
a ring above a red circle
a green ring on a black background
a striped ring
a star, a star and a ring
five objects
a square
a red circle, a red circle and a red circle
a circle at the center left
a large circle below a star""".splitlines()

STRANGE = """img-2041.jpg
a
a red
red
a circle circle
a red blue circle
two circle
a circles
one circles
a circle left
a circle of a star
a circle at the top bottom
a circle at the left at the right
a circle and
and a circle
a circle a star
a picture of
three
a circle in
²
a circle ²
a circle on a purple background
on a white background""".splitlines()


@pytest.mark.parametrize("text", TRUE)
def test_true(text: str) -> None:
    assert judge(text, SCENE).word == "true"


@pytest.mark.parametrize("text", FALSE)
def test_false(text: str) -> None:
    assert judge(text, SCENE).word == "false"


@pytest.mark.parametrize("text", ["", " ", ",", *STRANGE])
def test_not_understood(text: str) -> None:
    assert judge(text, SCENE).word == "not understood"


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("a large blue circle in the top left corner", "colour"),
        ("a small solid red circle in the top left corner", "size"),
        ("a large striped red circle in the top left corner", "texture"),
        ("a large solid red heart in the top left corner", "shape"),
        ("a large solid red circle in the bottom left corner", "position"),
        ("a large red circle to the right of a blue star", "relation"),
        ("three red circles", "count"),
        ("a green ring on a gray background", "background"),
    ],
)
def test_the_verdict_names_what_is_wrong(text: str, wrong: str) -> None:
    verdict = judge(text, SCENE)
    assert {k for k in verdict.stated if verdict.right[k] < verdict.stated[k]} == {wrong}


def test_any_string_has_a_verdict() -> None:
    rng = random.Random(0)
    words = " ".join((*TRUE, *STRANGE)).split()
    letters = string.printable + "äß²½٣猫"
    salads = [" ".join(rng.choices(words, k=rng.randint(2, 30))) for _ in range(3000)]
    noise = ["".join(rng.choices(letters, k=rng.randint(0, 40))) for _ in range(3000)]
    assert all(judge(t, SCENE).word in ("true", "false", "not understood") for t in salads + noise)
    # Words that fall into place by themselves are rare, and letters never do.
    assert sum(parse(text) is None for text in salads) > 0.97 * len(salads)
    assert all(parse(text) is None for text in noise)
    assert judge("a circle and " * 10_000 + "a star", SCENE).word == "not understood"
    assert judge("9 circles, " * 7 + "9 circles", SCENE).word == "false"
