from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import change, header_of

from blip_fast.cli import main
from blip_fast.data.check import Check, check_source, is_safe, reasons
from blip_fast.data.checkpage import render_check
from blip_fast.data.web import open_web

HOSTILE = "../<script>alert(1)</script>"


def photo(seed: int, size: tuple[int, int] = (64, 48), quality: int = 90) -> bytes:
    """A picture of large soft shapes that only its seed decides."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((96, 72), Image.Resampling.BICUBIC).resize(size).save(
        file, "JPEG", quality=quality
    )
    return file.getvalue()


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def samples(first: int, count: int = 5) -> dict[str, bytes]:
    keys = range(first, first + count)
    return {f"{n:04}{x}": d for n in keys for x, d in ((".jpg", photo(n)), (".txt", b"a text"))}


def check(spec: Path | str) -> Check:
    return check_source(open_web(spec))


def test_a_sound_source_is_clean(tmp_path: Path) -> None:
    for n in (0, 1):
        shard(tmp_path / f"0000{n}.tar", samples(5 * n))
    done: list[int] = []
    found = check_source(open_web(tmp_path), progress=done.append)
    assert found.clean and (found.count, found.readable, found.shards) == (10, 10, 2)
    assert sum(done) == 10 and found.listed == [] and found.exact == found.alike == []
    assert list(found.sides) == [64, 48] * 10
    assert "No faults" in render_check(found)


def test_damage_is_told_by_byte(tmp_path: Path) -> None:
    """A header that is overwritten, and what can still be read."""
    path = shard(tmp_path / "00000.tar", samples(0, 6))
    at = header_of(path, "0002.jpg")
    change(path, at, b"\xff" * 100)
    found = check(path)
    assert found.faults["damaged"] == 1 and found.readable == 5
    (fault,) = reasons(found)["damaged"]
    assert fault.offset == at and fault.where == str(path)
    assert f"at byte {at}" in render_check(found)
    # The text of the sample whose picture is lost is there, and says so.
    (without,) = reasons(found)["failed_to_read"]
    assert without.key == "0002" and f"damaged at byte {at}" in without.what


@pytest.mark.parametrize("left", [100, 512, 700])
def test_a_cut_archive(tmp_path: Path, left: int) -> None:
    path = shard(tmp_path / "00000.tar", samples(0, 3))
    end = header_of(path, "0002.jpg") + left
    path.write_bytes(path.read_bytes()[:end])
    found = check(path)
    assert not found.clean and found.readable == 2
    offsets = [fault.offset for fault in reasons(found)["damaged"]]
    assert offsets and all(offset is not None and offset <= end for offset in offsets)


def test_lost_samples_are_counted(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", samples(0, 3))
    (tmp_path / "00000_stats.json").write_text('{"successes": 10}')
    found = check(tmp_path)
    assert found.faults == {"lost": 7} and "7 of 10 samples are lost" in found.listed[0].what


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", samples(0, 3))
    found = check(f"{tmp_path}/0000{{0,1}}.tar")
    assert found.faults == {"unreadable_shard": 1} and found.readable == 3
    assert found.listed[0].shard == 1


def test_members_out_of_place_and_twice(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("a.jpg", "b.jpg", "a.txt", "b.txt", "b.jpg"):
            data = photo(ord(name[0])) if name.endswith("jpg") else b"x"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    whats = " ".join(fault.what for fault in check(path).listed)
    assert "does not lie beside" in whats and "is there a second time" in whats


def test_texts_and_keys(tmp_path: Path) -> None:
    files = {
        "good.jpg": photo(0), "good.txt": b"fine", "none.jpg": photo(1), "empty.jpg": photo(2),
        "empty.txt": b" \n", "latin.jpg": photo(3), "latin.txt": b"caf\xe9",
        f"{HOSTILE}.jpg": photo(4), f"{HOSTILE}.txt": b"x", "/etc/passwd.jpg": photo(5),
    }  # fmt: skip
    found = check(shard(tmp_path / "00000.tar", files))
    assert found.faults == {"empty_text": 1, "unreadable_text": 1, "unsafe_key": 2}
    assert found.without_text == 2 and found.readable == 6
    page = render_check(found)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"url\(|@import|https?://", page)


@pytest.mark.parametrize("key", ["a/b.jpg", "猫", "https://x.org/a.jpg", "a b", "..a"])
def test_keys_that_are_plain(key: str) -> None:
    assert is_safe(key)


@pytest.mark.parametrize("key", ["", "../a", "a/../b", "/etc/x", "a\nb", "a\x00", "\x1b[31m"])
def test_keys_that_are_not(key: str) -> None:
    assert not is_safe(key)


def test_copies_are_found_across_shards(tmp_path: Path) -> None:
    flat = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 80, 200)).save(flat, "PNG")
    grey = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 90, 90)).save(grey, "PNG")
    shard(tmp_path / "0.tar", {f"{n}.jpg": photo(n) for n in range(8)})
    shard(
        tmp_path / "1.tar",
        {
            "copy.jpg": photo(3),
            "small.jpg": photo(5, (32, 24), 60),
            "copy2.jpg": photo(5),
            "flat.png": flat.getvalue(),
            "grey.png": grey.getvalue(),
        },
    )
    found = check(tmp_path)
    assert found.clean and found.repeated == 2
    assert found.exact == [[(0, 3), (1, 0)], [(0, 5), (1, 2)]]
    assert found.alike == [[(0, 5), (1, 1), (1, 2)]]
    page = render_check(found)
    assert page.count("data:image/jpeg;base64,") == 7 and ">copy2<" in page
    assert check_source(open_web(tmp_path), duplicates=False).exact == []


def test_a_page_of_a_source_that_has_gone_since(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.jpg").write_bytes(photo(0))
    found = check(tmp_path)
    (tmp_path / "1.jpg").unlink()
    assert render_check(found).count("data:image/jpeg") == 1


def test_many_faults_are_counted_and_some_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blip_fast.data.check.LISTED", 5)
    for n in range(12):
        (tmp_path / f"{n:02}.jpg").write_bytes(b"\xff\xd8\xff no")
    found = check(tmp_path)
    assert found.faults == {"failed_to_decode": 12} and len(found.listed) == 5
    assert "and 7 more" in render_check(found)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photo(0))
    page = tmp_path / "page.html"
    assert main(["check", str(folder), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 pictures can be read" in out and out.endswith(f"no faults\n{page}\n")
    (folder / "b.jpg").write_bytes(b"no")
    assert main(["check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "failed_to_decode: 1\n  'b.jpg': 2 bytes" in out and out.endswith("1 faults\n")
    assert main(["check", str(folder), "--json"]) == 1
    fault, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert fault["fault"]["key"] == "b.jpg" and summary["faults"] == {"failed_to_decode": 1}
    assert main(["check", str(tmp_path / "nowhere")]) == 1


def test_a_page_that_cannot_be_written_is_refused_before_reading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in (tmp_path, tmp_path / "none" / "check.html"):
        assert main(["check", str(tmp_path / "gone.tar"), "--output", str(page)]) == 1
        assert f"--output {page} must be a file in a folder" in capsys.readouterr().err


def test_a_terminal_is_not_written_to_by_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "0.tar", {"\x1b[31mred.jpg": b"no"})
    assert main(["check", str(tmp_path)]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_manifests_and_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jpg").write_bytes(photo(0))
    rows = [{"image": "a.jpg", "caption": "x"}, {"image": "gone.jpg", "caption": "y"}]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    assert check(tmp_path / "m.json").faults == {"failed_to_read": 1}
    table = pa.table({"image": [photo(1), photo(1), b"no"], "caption": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = check(tmp_path / "t.parquet")
    assert found.faults == {"failed_to_decode": 1} and found.repeated == 1


def test_the_hostile_images(shared_data: Path) -> None:
    found = check(shared_data / "image_faults")
    assert found.count == 51 and found.faults == {"failed_to_decode": 9, "too_large": 2}
