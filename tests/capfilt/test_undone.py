"""Shards that are not there, or whose pictures are not: left undone, and the others are done."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_fast.capfilt import CapFiltOptions, StageFailed, run_capfilt
from blip_fast.capfilt.rows import committed
from blip_fast.cli import main
from blip_fast.data.check import check_source
from blip_fast.data.web import open_web

OPTIONS = CapFiltOptions(batch_size=2, shard_size=2, gallery=3)


def test_a_shard_that_disappears(tmp_path: Path, stub: Any, two_tars: Path) -> None:
    second = two_tars / "00001.tar"
    source, model = open_web(two_tars), stub()
    held = second.rename(tmp_path / "held.tar")
    summary = run_capfilt(source, tmp_path / "out", model, model, OPTIONS)
    assert (summary.complete, list(summary.undone), summary.count) == (False, ["00001"], 3)
    assert "FileNotFoundError" in summary.stats["losses"][0]["what"]
    assert "00001.tar" in summary.report.read_text(encoding="utf-8")
    held.rename(second)
    assert run_capfilt(two_tars, tmp_path / "out", model, model, OPTIONS).complete


def test_shards_behind_one_that_is_not_there(
    tmp_path: Path, two_tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two_tars / "00000.tar").unlink()
    command = ["capfilt", f"{two_tars}/{{00000..00001}}.tar", "--output", str(tmp_path / "out")]
    models = ["--captioner", "scenes", "--filter", "scenes", "--device", "cpu"]
    assert main([*command, *models]) == 1
    told = capsys.readouterr()
    for said in ("3 of 3 pictures read", "1 left undone;", "00000.tar"):
        assert said in told.err
    assert told.out.strip().endswith("report.html")
    command[3] = str(tmp_path / "rounds")
    assert main([*command, *models, "--finetune", "./train.sh {output}"]) == 1
    assert capsys.readouterr().out.strip().endswith("report.html")
    (two_tars / "00001.tar").unlink()
    command[3] = str(tmp_path / "nothing")
    assert main([*command, *models]) == 1
    assert "error: shard 00000 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "why"),
    [(b"<html>sign in</html>", "begins with b'<html>sign in"), (gzip.compress(b""), "decompress")],
)
def test_what_is_no_tar_is_not_taken_for_an_empty_one(
    page: bytes, why: str, tmp_path: Path, stub: Any, two_tars: Path
) -> None:
    first, model = two_tars / "00000.tar", stub()
    held = first.read_bytes()
    first.write_bytes(page)
    summary = run_capfilt(two_tars, tmp_path / "out", model, model, OPTIONS)
    assert list(summary.undone) == ["00000"] and why in summary.undone["00000"]
    faults = check_source(open_web(two_tars)).faults
    assert faults["unreadable_shard"] == 1
    first.write_bytes(held)
    assert run_capfilt(two_tars, tmp_path / "out", model, model, OPTIONS).complete


def test_a_network_that_is_gone_leaves_the_shard_undone(tmp_path: Path, stub: Any) -> None:
    manifest = tmp_path / "web.json"
    manifest.write_text('[{"url": "memory://gone/a.jpg"}, {"url": "memory://gone/b.jpg"}]')
    model = stub()
    with pytest.raises(StageFailed, match=r"no picture of shard 00000 could be read.*b\.jpg"):
        run_capfilt(manifest, tmp_path / "out", model, model, OPTIONS)
    assert committed(tmp_path / "out") == []
    import fsspec

    with fsspec.open("memory://gone/a.jpg", "wb") as file:
        Image.new("RGB", (8, 8)).save(file, "PNG")
    summary = run_capfilt(manifest, tmp_path / "out", model, model, OPTIONS)
    assert (summary.count, summary.successes) == (2, 1)  # one dead link is a row


def test_a_wrong_image_root_is_no_result(tmp_path: Path, source: Path, stub: Any) -> None:
    manifest, model = tmp_path / "web.json", stub()
    names = [path.name for path in sorted(source.glob("*_*.png"))]
    manifest.write_text(json.dumps([{"image": name} for name in names]))
    for options in (OPTIONS, replace(OPTIONS, shard_size=99)):
        with pytest.raises(StageFailed, match="no picture of shard .* could be read.*FileNotFound"):
            run_capfilt(manifest, tmp_path / "out", model, model, replace(options, overwrite=True))
    rooted = replace(OPTIONS, shard_size=99, image_root=source)
    assert run_capfilt(manifest, tmp_path / "out", model, model, rooted).successes == len(names)


def test_a_last_shard_of_dead_links_costs_that_shard(
    tmp_path: Path, source: Path, stub: Any
) -> None:
    manifest, model = source / "web.json", stub()
    manifest.write_text(json.dumps([{"image": n} for n in ("a_good.png", "b_bad.png", "none.png")]))
    summary = run_capfilt(manifest, tmp_path / "out", model, model, OPTIONS)
    assert (summary.successes, list(summary.undone), summary.complete) == (2, ["00001"], False)
    assert "none.png" in summary.report.read_text(encoding="utf-8")
