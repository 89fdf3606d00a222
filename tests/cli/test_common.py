"""What verbs share: how a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blip_fast
from blip_fast.images import options


def test_the_decoder_goes_to_the_model(run: Any, pictures: Path, loads: list) -> None:
    assert run("caption", pictures, "--dry-run", "--num-beams", 1, "--max-length", 10)[0] == 0
    command = ("caption", pictures, "--dry-run", "--num-beams", 1, "--max-length", 10)
    assert run(*command, "--decode", "dali")[0] == 0
    assert [call["decoder"] for call in loads] == ["auto", "dali"]


def test_decoders_work_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = blip_fast.load("scenes", device="cpu").image_options
    assert (plain.decoder, plain.device) == ("auto", "cpu")
    monkeypatch.setattr(options, "_is_installed", lambda module: True)
    found = blip_fast.load("scenes", device="cpu", decoder="dali").image_options
    assert (found.decoder, found.device) == ("dali", "cpu")
    monkeypatch.undo()
    monkeypatch.setattr(options, "_is_installed", lambda module: False)
    with pytest.raises(ValueError, match=r"blip-fast\[nvimgcodec\]"):
        blip_fast.load("scenes", device="cpu", decoder="nvimgcodec")
