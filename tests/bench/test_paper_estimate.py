"""The estimate's arithmetic: operations against published ones, hours against rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.paper_estimate import (
    PICTURES,
    Rate,
    computed,
    estimate,
    given,
    memory_bytes,
    of_run,
    see_operations,
    table,
)
from blip_fast.config import preset


@pytest.mark.parametrize(
    ("name", "vision", "memory"), [("base", 111.1, 16.3), ("large", 382, 21.8)]
)
def test_operations_are_those_that_are_known(name: str, vision: float, memory: float) -> None:
    """timm's count of a ViT at 384 pixels, and the keys and values of twelve layers."""
    assert see_operations(preset(name)) / 1e9 == pytest.approx(vision + memory, rel=0.01)
    assert memory_bytes(preset(name)) == 12 * 577 * 2 * 768 * 2


def test_more_work_is_slower() -> None:
    rates = [computed(preset(name), n, 16) for name, n in (("base", 1), ("base", 5), ("large", 5))]
    for role in ("captioner", "filter"):
        one, five, large = (rate[role].images_per_second for rate in rates)
        assert one > five > large > 0
    assert "not measured" in rates[0]["captioner"].source


def test_models_take_turns_and_the_rest_overlaps() -> None:
    rates = {
        "captioner": Rate(100, "x"),
        "filter": Rate(100, "x"),
        "decode": Rate(80, "x"),
        "storage": Rate(1600, "x", shared=True),
    }
    assert estimate(rates, 1) == (pytest.approx(PICTURES / 50 / 3600), "the models")
    assert estimate(rates, 8) == (pytest.approx(PICTURES / 400 / 3600), "the models")
    assert estimate(rates, 64) == (pytest.approx(PICTURES / 1600 / 3600), "storage")
    rates["decode"] = Rate(49, "x")
    assert estimate(rates, 1)[1] == "decode"
    lines = table(rates)
    assert "an estimate" in lines[0] and lines[-1].split()[2:] == ["decode", "decode", "storage"]


def test_rates_of_runs_and_files(tmp_path: Path) -> None:
    stages = {"captioner": {"busy": 2.0}, "filter 1": {"busy": 1.0}, "filter 2": {"busy": 3.0}}
    (tmp_path / "totals.json").write_text(json.dumps({"count": 80, "stages": stages}))
    rates = of_run(tmp_path)
    assert {name: rate.images_per_second for name, rate in rates.items()} == {
        "captioner": 40, "filter": 20,
    }  # fmt: skip
    assert "measured" in rates["filter"].source
    file = tmp_path / "rates.json"
    file.write_text('{"decode": {"images_per_second": 7, "source": "here"}}')
    assert given(file) == {"decode": Rate(7.0, "here")}
    file.write_text('{"deocde": {}}')
    with pytest.raises(ValueError, match="'deocde' is none of captioner"):
        given(file)
