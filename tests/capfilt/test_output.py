"""What a run leaves behind, as others read it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_fast.capfilt import CapFiltOptions, read_rows, run_capfilt
from blip_fast.capfilt.copies import safe_name
from blip_fast.capfilt.kept import readable
from blip_fast.data import open_source
from blip_fast.data.tar import scan
from blip_fast.data.tarwrite import TarWriter
from blip_fast.images import ImageOptions, decode

OPTIONS = CapFiltOptions(batch_size=2, num_captions=2)
HOSTILE = ["../../evil", "/etc/passwd", "a\nb", "con\\x", "猫" * 30]


@pytest.fixture
def output(two_tars: Path, tmp_path: Path, stub: Any) -> Path:
    model = stub()
    run_capfilt(two_tars, tmp_path / "out", model, model, OPTIONS)
    return tmp_path / "out"


def kept_of(output: Path) -> list[tuple[str, str]]:
    """The picture's key and the text of every kept candidate, from the tables."""
    return [(r["key"], c["text"]) for r in read_rows(output) for c in r["candidates"] if c["kept"]]


def test_a_tar_for_every_tar(output: Path, two_tars: Path) -> None:
    names = sorted(path.name for path in output.iterdir())
    ends = (".parquet", ".tar", "_stats.json")
    assert names == [
        *(f"0000{n}{end}" for n in range(2) for end in ends), "report.html", "run.json",
        "totals.json",
    ]  # fmt: skip
    for n in range(2):
        index = scan(output / f"0000{n}.tar")
        assert index.damages == [] and len(index.samples) == 9  # one web text, two captions each
    with tarfile.open(output / "00001.tar") as ours, tarfile.open(two_tars / "00001.tar") as theirs:
        about = json.load(ours.extractfile("00001_00002_0.json"))  # type: ignore[arg-type]
        pictures = [
            tar.extractfile(name).read()  # type: ignore[union-attr]
            for tar, name in ((ours, "00001_00002_2.jpg"), (theirs, "000010002.jpg"))
        ]
        assert all(m.mtime == m.uid == m.gid == 0 for m in ours.getmembers())
    assert pictures[0] == pictures[1]
    assert about["key"] == "000010002" and about["original"]["uid"] == "u000010002"
    assert about["caption"] == "text 000010002" and about["source"] == "web"


def test_our_trainer_reads_it_unchanged(output: Path) -> None:
    source = open_source(output)
    assert list(source.counts) == [9, 9]
    read = []
    for n in range(2):
        shard = source.open(n)
        for place in range(len(shard)):
            sample = shard[place]
            assert isinstance(sample.images[0], bytes)
            Image.open(io.BytesIO(sample.images[0])).load()
            read.append(sample.text)
    assert read == [text for _, text in kept_of(output)]


def test_webdataset_reads_it_unchanged(output: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    pipeline = webdataset.WebDataset(
        [str(output / f"0000{n}.tar") for n in range(2)], shardshuffle=False
    )
    # as open_clip does it
    samples = list(pipeline.decode("pilrgb").rename(image="jpg;png;jpeg;webp", text="txt"))
    assert [sample["text"] for sample in samples] == [text for _, text in kept_of(output)]
    assert samples[0]["image"].size == (20, 10) and samples[0]["json"]["status"] == "success"


def test_keys_are_data(tmp_path: Path, stub: Any) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "GIF")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key in HOSTILE:
            for suffix, data in (("gif", picture.getvalue()), ("txt", b"good")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    model, output = stub(), tmp_path / "deep" / "er" / "out"
    options = CapFiltOptions(batch_size=2, sidecars=True, coco_json=True)
    run_capfilt(tmp_path / "0.tar", output, model, model, options)
    assert [row["key"] for row in read_rows(output)] == HOSTILE
    names = {sample.key for sample in scan(output / "00000.tar").samples}
    assert names == {f"00000_0000{n}_{c}" for n in range(5) for c in range(2)}
    written = {path.relative_to(tmp_path / "deep") for path in (tmp_path / "deep").rglob("*")}
    assert all(path.parts[:2] == ("er", "out") for path in written if len(path.parts) > 1)
    sidecars = sorted(path.name for path in (output / "sidecars").iterdir())
    assert sidecars == ["00000_00000.txt", "00000_00001.txt", "00000_00002.txt",
                        "00000_00003.txt", f"{HOSTILE[4]}.txt"]  # fmt: skip
    coco = json.loads((output / "kept_coco.json").read_text(encoding="utf-8"))
    assert coco["images"][0]["file_name"] == "00000.tar/00000_00000_0"
    assert len(coco["annotations"]) == 10


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b.jpg", "a/b.txt"),
        ("a.b.jpg", "a.b.txt"),
        ("../a.jpg", ""),
        ("a/../../b.jpg", ""),
        ("/a.jpg", ""),
        ("C:x.jpg", ""),
        ("a\x00.jpg", ""),
        ("a\u202e.jpg", ""),
        ("", ""),
        ("x" * 300 + ".jpg", ""),
    ],
)
def test_safe_names(key: str, name: str) -> None:
    assert safe_name(key) == name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_are_kept_as_others_can_read_them(kind: str) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((16, 12)).save(file, kind)
    suffix, data = readable(file.getvalue())
    assert suffix == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}.get(kind, "png")
    if kind in ("JPEG", "PNG", "WEBP"):
        assert data == file.getvalue()
    else:
        ours, theirs = (decode(d, ImageOptions()).pixels for d in (data, file.getvalue()))
        assert ours.tobytes() == theirs.tobytes()  # type: ignore[union-attr]


def test_archives_end_properly_or_not_at_all(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file, TarWriter(file) as tar:
        for n in range(3):
            tar.add(f"{n}.txt", b"x" * (n * 512 - n))
    assert scan(tmp_path / "a.tar").damages == []
    assert tarfile.open(tmp_path / "a.tar").getnames() == ["0.txt", "1.txt", "2.txt"]
    with pytest.raises(KeyError), (tmp_path / "b.tar").open("wb") as file, TarWriter(file) as tar:
        tar.add("0.txt", b"x")
        raise KeyError
    assert "end mark is missing" in str(scan(tmp_path / "b.tar").damages[0])


def test_the_source_may_lie_elsewhere_when_the_run_goes_on(
    two_tars: Path, tmp_path: Path, stub: Any, output: Path
) -> None:
    os.rename(two_tars, tmp_path / "moved")
    model = stub()
    assert run_capfilt(tmp_path / "moved", output, model, model, OPTIONS).complete
    assert model.seen == 0
