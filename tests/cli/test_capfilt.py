from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blip_fast.cli import main
from blip_fast.cli.common import CAPTIONER, FILTER


def test_a_run(run: Any, pictures: Path, loads: list, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = ("--threshold", 0, "--num-captions", 2, "--batch-size", 2)
    code, out, err = run("capfilt", pictures, "--output", output, *flags)
    assert code == 0
    assert [call["source"] for call in loads] == [CAPTIONER, FILTER]
    assert out == f"{output / 'report.html'}\n"
    assert "2 of 3 pictures read, 1 failed (failed_to_decode 1)" in err
    assert "synthetic texts: 4 of 4 kept" in err and "web texts: 0 of 0 kept" in err
    assert sorted(path.name for path in output.iterdir()) == [
        "00000.parquet", "00000_stats.json", "kept.json", "report.html",
    ]  # fmt: skip
    stats = json.loads((output / "00000_stats.json").read_text(encoding="utf-8"))
    assert stats["settings"]["num_captions"] == 2 and stats["settings"]["num_beams"] is None
    assert len(json.loads((output / "kept.json").read_text(encoding="utf-8"))) == 4


def test_one_source_is_loaded_once(run: Any, pictures: Path, loads: list, tmp_path: Path) -> None:
    flags = ("--captioner", "scenes", "--filter", "scenes", "--num-beams", 2)
    assert run("capfilt", pictures, "--output", tmp_path / "out", *flags)[0] == 0
    assert [call["source"] for call in loads] == ["scenes"]


def test_refusals_come_before_loading(
    run: Any, pictures: Path, loads: list, tmp_path: Path
) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done/00000_stats.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for argv, message in (
        ((pictures, "--output", tmp_path / "done"), "holds a finished run"),
        ((tmp_path / "empty", "--output", tmp_path / "o"), "there are no pictures in"),
        ((tmp_path / "gone", "--output", tmp_path / "o"), "is not a folder"),
        ((pictures, "--output", tmp_path / "o", "--threshold", 2), "threshold 2.0"),
        ((pictures, "--output", tmp_path / "o", "--num-captions", 0), "must be at least 1"),
    ):
        code, _, err = run("capfilt", *argv)
        assert code == 1 and message in err
    assert loads == []
    assert run("capfilt", pictures, "--output", tmp_path / "done", "--overwrite")[0] == 0


def test_nothing_worked(run: Any, pictures: Path, tmp_path: Path) -> None:
    for path in (pictures / "a.png", pictures / "sub/猫.jpg"):
        path.unlink()
    code, _, err = run("capfilt", pictures, "--output", tmp_path / "out")
    assert code == 1 and "0 of 1 pictures read" in err
    assert (tmp_path / "out/report.html").is_file()


def test_sampling_and_beams_exclude_each_other(pictures: Path) -> None:
    argv = ["capfilt", str(pictures), "--output", "o", "--top-p", "0.9", "--num-beams", "3"]
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
