"""Texts as BLIP's training cleans them: lower case, without punctuation, cut to some words."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str, max_words: int) -> str:
    """The reference's `pre_caption`: punctuation becomes a space, white space one blank."""
    words = _PUNCTUATION.sub(" ", text.lower()).split()
    return " ".join(words[:max_words])


def clean_question(text: str, max_words: int) -> str:
    """The reference's `pre_question`: punctuation is left out, white space stays as it is."""
    words = _PUNCTUATION.sub("", text.lower()).rstrip().split(" ")
    return " ".join(words[:max_words])
