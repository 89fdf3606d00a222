"""What `--ray` asks of a run on Ray; the run itself is tests/capfilt/test_ray_run.py's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blip_fast
from blip_fast import capfilt
from blip_fast.capfilt import run_capfilt
from blip_fast.cli.common import CAPTIONER, FILTER


def test_models_are_named_and_loaded_elsewhere(
    run: Any, pictures: Path, loads: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def run_on_ray(
        source: str, output: Path, captioners: list, filters: list, options: Any, **rest: Any
    ) -> Any:
        assert loads == []
        asked.append({"specs": [*captioners, *filters], **rest})
        models = [spec() for spec in (*captioners, *filters)]
        return run_capfilt(source, output, models[0], models[1], options, rest["progress"])

    monkeypatch.setattr(capfilt, "run_on_ray", run_on_ray)
    command = ("capfilt", pictures, "--output", tmp_path / "out", "--num-beams", 1)
    code, out, err = run(*command, "--dtype", "float32", "--ray", "--ray-workers", 3)
    assert code == 0 and "2 of 3 pictures read" in err and out.endswith("report.html\n")
    assert (asked[0]["address"], asked[0]["workers"]) == ("local", 3)
    assert [spec.func for spec in asked[0]["specs"]] == [blip_fast.load] * 2
    assert [call["source"] for call in loads] == [CAPTIONER, FILTER]
    assert {call["dtype"] for call in loads} == {"float32"}
    loads.clear()
    words = ("--ray", "ray://head:10001", "--captioner", "scenes", "--filter", "scenes")
    assert run(*command, *words)[0] == 0
    assert (asked[1]["address"], asked[1]["workers"]) == ("ray://head:10001", None)
    first, second = asked[1]["specs"]
    assert first is second  # one model, seen once
