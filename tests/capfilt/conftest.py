"""A model whose answers are known, and a small folder of web pictures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from capfilt_stub import StubBlip
from PIL import Image

HOSTILE = "<script>alert('x')</script> & \"quotes\" 猫"


@pytest.fixture
def stub() -> type[StubBlip]:
    return StubBlip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven pictures: good, bad, not a number, blank and no text, hostile text; one is broken."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    texts = {
        "a_good": "a good text",
        "b_bad": "bad.jpg",
        "c_nan": "nan",
        "d_blank": " \n",
        "e_none": None,
        "sub/f_hostile": HOSTILE,
    }
    for value, (name, text) in enumerate(texts.items()):
        Image.new("RGB", (30, 20), (value * 40,) * 3).save(folder / f"{name}.png")
        if text is not None:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "d_broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder


@pytest.fixture
def two_tars(tmp_path: Path) -> Path:
    """Two tar shards as img2dataset writes them, of three pictures each."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"0000{shard}.tar", "w") as tar:
            for n in range(3):
                file = io.BytesIO()
                Image.new("RGB", (20, 10), (shard * 100, n * 80, 50)).save(file, "JPEG")
                key = f"{shard:05}{n:04}"
                about = {"key": key, "uid": f"u{key}", "caption": f"text {key}"}
                for suffix, data in (
                    ("jpg", file.getvalue()),
                    ("txt", f"text {key}".encode()),
                    ("json", json.dumps(about).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder
