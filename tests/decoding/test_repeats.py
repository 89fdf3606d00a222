"""Which texts go round in circles."""

from __future__ import annotations

import pytest

from blip_fast.decoding.repeats import is_degenerate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("bald", False),
        ("a dog on a beach", False),
        ("a very very big dog", False),
        ("bald bald bald", True),
        ("a man is bald bald bald in a suit", True),
        ("gi ##fe ##fe ##fe", True),
        ("red and red and white", False),
        ("red and red and red and", True),
        ("a cup and a plate and a cup", False),
        ("a dog on a dog on", True),
        ("two cats in the grass and two dogs in the grass", False),
        ("two cats in the grass two cats in the grass", True),
        ("a b a b c a b", False),
    ],
)
def test_is_degenerate(text: str, expected: bool) -> None:
    words = text.split()
    ids = {word: n for n, word in enumerate(words)}
    assert is_degenerate([ids[word] for word in words]) is expected
