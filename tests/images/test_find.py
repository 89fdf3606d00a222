"""Which paths of a folder are images, in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blip_fast.images import find_images


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path, recursive: bool = True) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_images(folder, recursive)]


def test_by_suffix_in_order(tmp_path: Path) -> None:
    make(
        tmp_path, "b.JPG", "a.png", "c.WebP", "d.tiff", "e.avif", "f.jfif", "g.txt", "jpg", "h.gif"
    )
    assert found(tmp_path) == ["a.png", "b.JPG", "c.WebP", "d.tiff", "e.avif", "f.jfif", "h.gif"]


def test_recursion_and_hidden_names(tmp_path: Path) -> None:
    make(tmp_path, "z.jpg", "in/a.jpg", "in/deep/b.jpg", ".hidden/c.jpg", ".d.jpg", "in/.e.jpg")
    assert found(tmp_path) == ["in/a.jpg", "in/deep/b.jpg", "z.jpg"]
    assert found(tmp_path, recursive=False) == ["z.jpg"]


def test_folders_and_links_that_look_like_images(tmp_path: Path) -> None:
    make(tmp_path, "folder.jpg/inside.png")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert found(tmp_path) == ["broken.jpg", "folder.jpg", "folder.jpg/inside.png"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "top/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "top" / "loop").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "one").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "top" / "two").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "top") == ["a.jpg", "one/b.jpg"]


def test_a_folder_that_cannot_be_listed_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found(tmp_path) == ["a.jpg", "closed"]


def test_no_folder(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []
    with pytest.raises(ValueError, match="nowhere"):
        find_images(tmp_path / "nowhere")
