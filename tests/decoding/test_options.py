"""Settings that contradict each other are refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from blip_fast.decoding.options import SearchOptions


def test_defaults_are_those_of_the_reference() -> None:
    options = SearchOptions()
    assert (options.num_beams, options.max_length, options.min_length) == (3, 30, 10)
    assert options.penalty == 1.0 and SearchOptions(top_p=0.9).penalty == 1.1
    assert SearchOptions(top_p=0.9, repetition_penalty=1.0).penalty == 1.0


def test_rows_are_beams_or_samples() -> None:
    assert SearchOptions(num_beams=4, num_texts=2).rows == 4
    assert SearchOptions(num_beams=4, num_texts=2, top_p=0.5).rows == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "at least 1"),
        ({"min_length": 31}, "min_length 31 is above max_length 30"),
        ({"num_texts": 4}, "4 texts cannot come from 3 beams"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"top_k": -1}, "top_k -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty inf"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty nan"),
        ({"length_penalty": float("nan")}, "length_penalty nan"),
        ({"temperature": 0.7}, "beams do not sample; give top_p"),
        ({"top_k": 5, "num_beams": 1}, "beams do not sample; give top_p"),
        ({"num_beams": 3.0}, "num_beams is 3.0; it must be an integer"),
        ({"max_length": None}, "max_length is None; it must be an integer"),
    ],
)
def test_contradictions(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchOptions(**settings)
