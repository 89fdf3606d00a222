"""Pictures of folders, files and URLs, each once, with the texts beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from blip_fast.data import find
from blip_fast.data.web import WebPicture, open_web


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.png", "sub/猫.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("  a cat\n", encoding="utf-8")
    (tmp_path / "b.caption").write_text("a dog", encoding="utf-8")
    (tmp_path / "sub/c.txt").write_bytes(b"caf\xe9")
    return tmp_path


def pictures(folder: Path, recursive: bool = True) -> dict[str, WebPicture]:
    shard = open_web(folder, recursive=recursive).open(0)
    return {shard[n].key: shard[n] for n in range(len(shard))}


def test_pictures_carry_the_text_beside_them(folder: Path) -> None:
    found = pictures(folder)
    assert list(found) == sorted(found)
    assert found["a.jpg"].texts == ("a cat",)
    assert found["b.png"].texts == ("a dog",)
    assert found["sub/猫.png"].texts == () and not found["sub/猫.png"].text_failed
    assert found["sub/c.png"].texts == () and found["sub/c.png"].text_failed
    assert "not UTF-8" in found["sub/c.png"].error


def test_txt_comes_before_caption(folder: Path) -> None:
    (folder / "b.txt").write_text("", encoding="utf-8")
    assert pictures(folder)["b.png"].texts == ("",)


def test_not_recursive_leaves_folders_out(folder: Path) -> None:
    assert list(pictures(folder, recursive=False)) == ["a.jpg", "b.png"]


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
