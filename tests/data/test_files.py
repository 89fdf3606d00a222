from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from blip_fast.data import displayable, replacing, write_json


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_two_files_of_a_folder_can_be_written_at_once(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "b") as second:
        first.write_text("a")
        second.write_text("b")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_replacing_takes_the_longest_names(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".txt")
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_write_json_is_utf8_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"text": "Katze 猫 🐈"})
    assert "猫" in path.read_bytes().decode("utf-8")
    with pytest.raises(ValueError):
        write_json(path, {"score": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "Katze 猫 🐈"}


def test_displayable_can_always_be_encoded() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert displayable(name).encode("utf-8") == b"caf\\xe9.jpg"
    assert displayable(Path("猫.jpg")) == "猫.jpg"
