from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import blip_fast


@pytest.mark.parametrize("layout", ["blip_fast", "transformers"])
def test_what_is_written_can_be_loaded(
    run: Any, scenes: Any, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real `load`
    folder = tmp_path / "model"
    code, out, _ = run("convert", "scenes", folder, "--layout", layout, "--kind", "caption")
    assert code == 0
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if line[0] != " ")
    assert facts["layout"].endswith(f"-> {layout}") and facts["kind"] == "caption"
    assert facts["sha256"] == scenes.sha256
    assert int(facts["parameters"].replace(",", "")) > 1_000_000
    assert "left aside" in out and "tensors" in out
    assert out.splitlines()[-1].split()[-1] == str(folder)
    model = blip_fast.load(folder, dtype="float32", device="cpu")
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert model.config.kind == "caption"
    assert model.caption(picture).texts == scenes.caption(picture).texts


def test_a_source_that_is_not_there(run: Any, tmp_path: Path) -> None:
    code, _, err = run("convert", tmp_path / "gone.pth", tmp_path / "out")
    assert code == 1 and "gone.pth" in err and not (tmp_path / "out").exists()
