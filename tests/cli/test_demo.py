from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sample_shard import PAIRS, make_sample_shard

from blip_fast.cli.demo import sample_shard
from blip_fast.data.table import read_rows


def _members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_sample_shard_is_small_and_shows_every_case() -> None:
    members = _members(sample_shard())
    assert sample_shard().stat().st_size < 300_000
    truths = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    assert len(truths) == PAIRS
    assert 20 <= sum(truth["verdict"] == "true" for truth in truths) <= 30  # half are noise
    assert {truth["noise"] for truth in truths} == {
        "none", "other", "attribute", "boilerplate", "partial",
    }  # fmt: skip
    assert members["empty-text.txt"] == b"" and "without-text.txt" not in members
    with pytest.raises(OSError), Image.open(io.BytesIO(members["broken.jpg"])) as image:
        image.load()


def test_sample_shard_is_what_its_maker_makes(tmp_path: Path) -> None:
    """But for the bytes of pictures, which depend on the library that writes them."""
    committed, made = _members(sample_shard()), _members(make_sample_shard(tmp_path))
    assert list(committed) == list(made)
    for name, data in committed.items():
        if name.endswith(".png"):
            with Image.open(io.BytesIO(data)) as one, Image.open(io.BytesIO(made[name])) as other:
                assert one.tobytes() == other.tobytes()
        elif name.endswith(".json"):
            one, other = json.loads(data), json.loads(made[name])
            del one["sha256"], other["sha256"]
            assert one == other
        elif name.endswith(".txt"):
            assert data == made[name]


def test_demo_ends_with_the_report(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo")
    report = Path(out.splitlines()[-1])
    assert code == 0 and report.is_absolute() and report.is_file()
    assert report.parent == tmp_path / "blip_fast_demo"
    assert ("untrained weights" in out) is not scenes.trained
    assert ("precision" in err) is scenes.trained
    assert ("Rightly thrown out" in err) is scenes.trained
    assert "1 failed (failed_to_decode 1)" in err
    statuses = [row["status"] for row in read_rows(report.with_name("00000.parquet"))]
    assert statuses.count("success") == len(statuses) - 1
    assert run("demo")[0] == 0  # its own folder is replaced


def test_demo_replaces_no_other_run(run: Any, pictures: Path, tmp_path: Path) -> None:
    model = ("--captioner", "scenes", "--filter", "scenes")
    assert run("capfilt", pictures, "--output", tmp_path / "mine", *model)[0] == 0
    code, _, err = run("demo", "--output", tmp_path / "mine")
    assert code == 1 and "belongs to another run: source was" in err
