"""Bytes from paths, URLs and memory, and what becomes of sources that have none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blip_fast.images import ImageError, Status, name_of, read_bytes, read_picture


def refusal(source: object, max_bytes: int = 100) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_bytes(source, max_bytes)
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "ünï côdé 'x'.jpg"
    path.write_bytes(b"abc")
    for source in (
        path,
        str(path),
        f"file://{path}",
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc"),
    ):
        assert read_bytes(source, 3) == b"abc"


def test_a_missing_package_for_urls_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.open", refuse)
    with pytest.raises(ImageError, match=r"Install s3fs to access S3: pip install 'blip-fast\["):
        read_bytes("s3://bucket/a.jpg", 1000)


def test_urls_go_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://shelf/picture.jpg", "wb") as file:
        file.write(b"x" * 50)
    assert read_bytes("memory://shelf/picture.jpg", 50) == b"x" * 50
    assert refusal("memory://shelf/picture.jpg", 49).status is Status.TOO_LARGE
    missing = refusal("memory://shelf/none.jpg")
    assert missing.status is Status.FAILED_TO_READ and "FileNotFoundError" in str(missing)
    assert refusal("nosuchscheme://a/b.jpg").status is Status.FAILED_TO_READ


def test_a_url_whose_package_is_missing_says_which_extra_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fsspec = pytest.importorskip("fsspec")

    def missing(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", missing)
    reason = refusal("s3://bucket/picture.jpg")
    assert reason.status is Status.FAILED_TO_READ
    assert "Install s3fs" in str(reason) and "blip-fast[remote]" in str(reason)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = {
        "folder.jpg": "is a folder",
        "empty.jpg": "it is empty",
        "broken.jpg": "FileNotFoundError",
        "loop.jpg": "OSError",
        "pipe.jpg": "not a regular file",
        "missing.jpg": "FileNotFoundError",
        "nul\0.jpg": "ValueError",
    }
    for name, reason in reasons.items():
        error = refusal(tmp_path / name)
        assert error.status is Status.FAILED_TO_READ
        assert reason in str(error)
        assert read_picture(tmp_path / name).status is Status.FAILED_TO_READ


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"abc")
    path.chmod(0)
    assert "PermissionError" in str(refusal(path))


def test_limit_on_bytes(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    path.write_bytes(b"x" * 101)
    for source in (path, b"x" * 101):
        error = refusal(source)
        assert error.status is Status.TOO_LARGE
        assert "101" in str(error) and "100" in str(error)


@pytest.mark.parametrize("source", [None, 3, 1.5, ["a.jpg"], object()])
def test_other_types_are_rows_too(source: object) -> None:
    assert type(source).__name__ in str(refusal(source))
    assert read_picture(source).status is Status.FAILED_TO_READ


def test_names() -> None:
    assert name_of(Path("a/b.jpg")) == os.path.join("a", "b.jpg")
    assert name_of("s3://bucket/b.jpg") == "s3://bucket/b.jpg"
    assert name_of(b"...", 3) == "image 3"
