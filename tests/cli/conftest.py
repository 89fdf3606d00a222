"""The small model of the package behind every command, and a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import blip_fast
from blip_fast.cli import main


@pytest.fixture(scope="session")
def scenes() -> blip_fast.Blip:
    return blip_fast.load("scenes", dtype="float32", device="cpu")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, scenes: blip_fast.Blip) -> list[dict[str, Any]]:
    """What commands ask `blip_fast.load` for; they all get the small model."""
    calls: list[dict[str, Any]] = []

    def load(source: str, **settings: Any) -> blip_fast.Blip:
        calls.append({"source": source, **settings})
        return scenes

    monkeypatch.setattr(blip_fast, "load", load)
    return calls


@pytest.fixture
def run(
    loads: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line: exit code, standard output, standard error."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two good pictures, one with a name beyond ASCII, in two folders; and one that is broken."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for value, name in enumerate(("a.png", "sub/猫.jpg")):
        Image.new("RGB", (30, 20), (value * 90, 40, 200)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder
