"""Texts that nobody wrote for a picture, through a real model: each has a defined outcome."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import blip_fast
from blip_fast.capfilt import CapFiltOptions, read_rows, run_capfilt

LONG = "a red circle " * 800_000  # 10 MB
TEXTS = {
    "empty": (b"", "empty_text", False),
    "blank": (b" \t\r\n", "empty_text", False),
    "no_utf8": (b"\xff\xfe", "failed_to_read", False),
    "long": (LONG.encode(), "success", True),
    "one_word": (b"a" * 1_000_000, "success", True),
    "control": (b"a\x00\x1b[31m red\x7f circle", "success", False),
    "emoji": ("\U0001f469\u200d\U0001f680 \U0001f3f3\ufe0f".encode(), "success", False),
    "rtl": ("\u202e\u05e2\u05d1\u05e8\u05d9\u05ea".encode(), "success", False),
    "plain": (b"a red circle", "success", False),
}


@pytest.fixture(scope="module")
def scenes() -> blip_fast.Blip:
    return blip_fast.load("scenes", dtype="float32", device="cpu")


def test_every_text_has_its_outcome(tmp_path: Path, scenes: blip_fast.Blip) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(picture, "JPEG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, (text, _, _) in TEXTS.items():
            for suffix, data in (("jpg", picture.getvalue()), ("txt", text)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    options = CapFiltOptions(batch_size=16, num_beams=1, threshold=0)
    run_capfilt(tmp_path / "0.tar", tmp_path / "out", scenes, scenes, options)
    rows = {row["key"]: row for row in read_rows(tmp_path / "out")}
    assert list(rows) == list(TEXTS)
    scores = {}
    for key, (_, status, truncated) in TEXTS.items():
        web, *written = rows[key]["candidates"]
        assert rows[key]["status"] == "success" and len(written) == 1
        assert (web["status"], web["truncated"]) == (status, truncated), key
        assert web["kept"] is (status == "success")
        scores[key] = web["itm_probability"]
        assert (scores[key] is None) is (status != "success")
        assert scores[key] is None or math.isfinite(scores[key])
    assert scores["plain"] != scores["long"]
    alone = scenes.match(picture.getvalue(), ["a red circle"])
    assert scores["plain"] == pytest.approx(float(alone[0, 0]), abs=1e-4)
