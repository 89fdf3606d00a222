"""Texts cleaned as the reference's `pre_caption` and `pre_question` clean them."""

from __future__ import annotations

import re

import pytest

from blip_fast.data.clean import clean_caption, clean_question

CAPTIONS = [
    ("A man, riding a wave.", 30, "a man, riding a wave"),
    ('He said "Hi!" (twice); ok: #1 ~ *', 30, "he said hi twice ok 1"),
    ("  two\n  lines\t\tand tabs  ", 30, "two lines and tabs"),
    ("a.b.c", 30, "a b c"),
    ("one two three four", 2, "one two"),
    ("ÉTÉ à-la 猫", 30, "été à-la 猫"),
    ("...", 30, ""),
    ("", 30, ""),
]


@pytest.mark.parametrize(("text", "max_words", "expected"), CAPTIONS)
def test_captions(text: str, max_words: int, expected: str) -> None:
    assert clean_caption(text, max_words) == expected


@pytest.mark.parametrize(
    ("text", "max_words", "expected"),
    [
        ("What is it?  ", 50, "what is it?"),
        ("What's this (red) thing; a.b", 50, "what's this red thing ab"),
        ("one two three", 2, "one two"),
        (" two  blanks", 50, " two  blanks"),
    ],
)
def test_questions(text: str, max_words: int, expected: str) -> None:
    assert clean_question(text, max_words) == expected


@pytest.mark.parametrize("text", [text for text, *_ in CAPTIONS])
def test_captions_follow_the_description_step_by_step(text: str) -> None:
    """Lower case; ten characters become blanks; runs of white space become one; ends are cut."""
    words = re.sub(r"\s{2,}", " ", "".join(" " if c in '.!"()*#:;~' else c for c in text.lower()))
    words = words.replace("\t", " ").replace("\n", " ").strip()
    assert clean_caption(text, 30) == " ".join(words.split(" ")[:30])
