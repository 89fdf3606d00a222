from __future__ import annotations

from pathlib import Path

import pytest

from blip_fast.data import combine, find_sidecar, read_sidecar, refuse_clashes, write_sidecar


def test_written_text_is_utf8_with_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_sidecar(path, "ein Kätzchen 猫")
    assert path.read_bytes() == "ein Kätzchen 猫\n".encode()
    assert read_sidecar(path) == "ein Kätzchen 猫"


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\r\n")
    assert read_sidecar(path) == "a cat"


def test_other_encodings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("кошка".encode("cp1251"))
    with pytest.raises(ValueError, match="a.txt is not UTF-8"):
        read_sidecar(path)


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("skip", "old"), ("overwrite", "new"), ("append", "old, new"), ("prepend", "new, old")],
)
def test_combine(existing: str, expected: str) -> None:
    assert combine("old", "new", existing) == expected
    assert combine("", "new", existing) == "new"


def test_find_sidecar(tmp_path: Path) -> None:
    picture = tmp_path / "a.b.jpg"
    assert find_sidecar(picture) is None
    (tmp_path / "a.b.caption").touch()
    assert find_sidecar(picture) == tmp_path / "a.b.caption"
    (tmp_path / "a.b.txt").touch()
    assert find_sidecar(picture) == tmp_path / "a.b.txt"


def test_clashes_name_both_pictures() -> None:
    with pytest.raises(ValueError, match=r"f/a\.jpg and f/a\.png would share .*a\.txt"):
        refuse_clashes([(Path("f/a.txt"), "f/a.jpg"), (Path("f/a.txt"), "f/a.png")])
    refuse_clashes([(Path("f/a.txt"), "f/a.jpg"), (Path("g/a.txt"), "g/a.jpg")])
