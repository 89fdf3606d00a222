from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from blip_fast.data import find, read_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.png", "sub/猫.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("  a cat\n", encoding="utf-8")
    (tmp_path / "b.caption").write_text("a dog", encoding="utf-8")
    (tmp_path / "sub/c.txt").write_bytes(b"caf\xe9")
    return tmp_path


def test_records_carry_the_text_beside_the_picture(folder: Path) -> None:
    records = {record.key: record for record in read_folder(folder)}
    assert list(records) == sorted(records)
    assert records["a.jpg"].web_text == "a cat"
    assert records["b.png"].web_text == "a dog"
    assert records["sub/猫.png"].web_text is None and not records["sub/猫.png"].web_error
    assert records["sub/c.png"].web_text is None
    assert "not UTF-8" in records["sub/c.png"].web_error


def test_txt_comes_before_caption(folder: Path) -> None:
    (folder / "b.txt").write_text("", encoding="utf-8")
    records = {record.key: record for record in read_folder(folder)}
    assert records["b.png"].web_text == ""


def test_not_recursive_leaves_folders_out(folder: Path) -> None:
    assert [record.key for record in read_folder(folder, recursive=False)] == ["a.jpg", "b.png"]


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        list(read_folder(folder / "a.jpg"))


def test_find_takes_folders_files_and_urls_once_each(folder: Path) -> None:
    url = "https://example.org/x.jpg"
    found = find([folder / "sub", folder / "sub" / "c.png", url, folder / "gone.jpg"])
    assert [one.key for one in found] == ["c.png", "猫.png", url, "gone.jpg"]
    assert [one.source for one in found][2] == url


def test_keys_do_not_depend_on_where_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path.with_name(tmp_path.name + "_moved")
    before = [one.key for one in find([folder])]
    folder.rename(moved)
    assert [one.key for one in find([moved])] == before
