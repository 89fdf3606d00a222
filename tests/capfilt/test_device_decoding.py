"""CapFilt with decoders that take a batch at a time: the same rows, bad pictures among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from capfilt_stub import StubBlip
from PIL import Image

from blip_fast.capfilt import CapFiltOptions, read_rows, run_capfilt
from blip_fast.images import ON_DEVICE


@pytest.fixture(params=sorted(ON_DEVICE))
def decoder(request: pytest.FixtureRequest) -> str:
    reason = f"needs the extra blip-fast[{request.param}]: `make dali` installs it"
    pytest.importorskip(ON_DEVICE[request.param], reason=reason)
    return request.param


@pytest.fixture
def jpegs(source: Path) -> Path:
    """The pictures of every CapFilt test, and JPEGs: two good ones, one cut short, one damaged."""
    for value, name in enumerate(("x_good", "x_other", "y_cut", "z_damaged")):
        Image.new("RGB", (40, 30), (value * 60,) * 3).save(source / f"{name}.jpg")
    cut = source / "y_cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    damaged = source / "z_damaged.jpg"
    damaged.write_bytes(damaged.read_bytes().replace(b"\xff\xdb", b"\xff\xec"))
    return source


def rows(source: Path, output: Path, models: list[StubBlip]) -> list[dict[str, Any]]:
    run_capfilt(source, output, models, models, CapFiltOptions(batch_size=4, gallery=2))
    return list(read_rows(output))


def test_the_same_rows(jpegs: Path, tmp_path: Path, decoder: str) -> None:
    """Two models of different sizes, each with its own view of a picture."""
    expected = rows(jpegs, tmp_path / "plain", [StubBlip(), StubBlip(size=48)])
    models = [StubBlip(), StubBlip(size=48)]
    for model in models:
        model.image_options = replace(model.image_options, decoder=decoder)
    found = rows(jpegs, tmp_path / decoder, models)
    for ours, theirs in zip(found, expected, strict=True):
        assert {**ours, "thumbnail": None} == {**theirs, "thumbnail": None}
        assert bool(ours["thumbnail"]) == bool(theirs["thumbnail"])
    statuses = {row["key"]: row["status"] for row in found}
    assert statuses["x_good.jpg"] == statuses["x_other.jpg"] == "success"
    assert statuses["y_cut.jpg"] == statuses["z_damaged.jpg"] == "failed_to_decode"


def test_a_run_goes_on_with_its_own_decoder(jpegs: Path, tmp_path: Path, decoder: str) -> None:
    rows(jpegs, tmp_path / "out", [StubBlip()])
    model = StubBlip()
    model.image_options = replace(model.image_options, decoder=decoder)
    with pytest.raises(ValueError, match="belongs to another run: captioners"):
        rows(jpegs, tmp_path / "out", [model])
