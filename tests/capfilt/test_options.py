from __future__ import annotations

from typing import Any

import pytest

from blip_fast.capfilt import CapFiltOptions


def test_the_paper_samples_one_caption() -> None:
    search = CapFiltOptions().search()
    assert search == {"num_captions": 1, "min_length": 10, "max_length": 30, "top_p": 0.9}


def test_beams_replace_sampling() -> None:
    search = CapFiltOptions(num_beams=3).search()
    assert search["num_beams"] == 3 and "top_p" not in search


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"num_captions": 4, "num_beams": 3}, "4 texts cannot come from 3 beams"),
        ({"min_length": 40}, "min_length 40 is above max_length 30"),
        ({"max_text_length": 2}, "max_text_length 2"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_settings_are_checked_before_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CapFiltOptions(**settings)
