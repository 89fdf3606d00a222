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
        "00000.parquet", "00000.tar", "00000_stats.json", "report.html", "run.json", "totals.json",
    ]  # fmt: skip
    stats = json.loads((output / "totals.json").read_text(encoding="utf-8"))
    assert stats["settings"]["num_captions"] == 2 and stats["settings"]["num_beams"] is None
    assert stats["pairs"] == 4 and f"{stats['slowest']:12}" in err and "the slowest" in err


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
        ((pictures, "--output", tmp_path / "done"), "holds shards but no run.json"),
        ((tmp_path / "empty", "--output", tmp_path / "o"), "holds no shards and no pictures"),
        ((tmp_path / "gone", "--output", tmp_path / "o"), "is not there"),
        ((pictures, "--output", tmp_path / "o", "--vote", "sum"), "give weights with the vote"),
        ((pictures, "--output", tmp_path / "o", "--num-shards", 2, "--shard-index", 2), "from 0"),
        ((pictures, "--output", tmp_path / "o", "--threshold", 2), "threshold 2.0"),
        ((pictures, "--output", tmp_path / "o", "--num-captions", 0), "must be at least 1"),
        ((pictures, "--output", tmp_path / "o", "--ray-workers", 2), "goes with --ray"),
    ):
        code, _, err = run("capfilt", *argv)
        assert code == 1 and message in err
    assert loads == []


def test_a_source_without_pictures(run: Any, loads: list, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    code, _, err = run("capfilt", tmp_path / "a.tar", "--output", tmp_path / "out")
    assert code == 1 and err.startswith(f"no pictures in {tmp_path}/a.tar\n")
    code, out, _ = run("check", tmp_path / "a.tar")
    assert code == 1 and "there are no pictures in" in out and "no faults" not in out


def test_overwrite_replaces_runs_and_nothing_else(
    run: Any, pictures: Path, loads: list, tmp_path: Path
) -> None:
    """Shards that somebody else wrote, as those of the source, are not removed."""
    assert run("capfilt", pictures, "--output", tmp_path / "web")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "web").glob("0*")}
    for source in (tmp_path / "web", f"{tmp_path}/web/{{00000..00000}}.tar"):
        code, _, err = run("capfilt", source, "--output", tmp_path / "web", "--overwrite")
        assert code == 1 and "holds the source" in err
    (tmp_path / "web/run.json").unlink()
    code, _, err = run("capfilt", pictures, "--output", tmp_path / "web", "--overwrite")
    assert code == 1 and "holds shards but no run.json" in err
    assert {path: path.read_bytes() for path in (tmp_path / "web").glob("0*")} == before
    code, _, err = run("capfilt", pictures, "--output", pictures)
    assert code == 1 and "holds the source" in err and len(loads) == 2


def test_a_finished_run_is_told_again_and_other_settings_are_refused(
    run: Any, pictures: Path, tmp_path: Path
) -> None:
    command = ("capfilt", pictures, "--output", tmp_path / "out")
    assert run(*command)[0] == 0
    table = (tmp_path / "out/00000.parquet").read_bytes()
    code, out, err = run(*command)
    assert code == 0 and "2 of 3 pictures read" in err and out.endswith("report.html\n")
    code, _, err = run(*command, "--threshold", 0.7)
    assert code == 1 and "threshold was 0.5 and is 0.7" in err
    assert (tmp_path / "out/00000.parquet").read_bytes() == table
    assert run(*command, "--threshold", 0.7, "--overwrite")[0] == 0


def test_several_models_vote_and_copies_are_written(
    run: Any, pictures: Path, loads: list, tmp_path: Path
) -> None:
    argv = ["--captioner", "a", "--captioner", "b", "--filter", "a", "--filter", "c"]
    argv += ["--weights", 1, 3, "--threshold", 0, "--captions", 2, "--sidecars", "--coco-json"]
    code, _, err = run("capfilt", pictures, "--output", tmp_path / "out", *argv)
    assert code == 0 and [call["source"] for call in loads] == ["a", "b", "c"]
    assert "captioner 2" in err and "filter 2" in err
    coco = json.loads((tmp_path / "out/kept_coco.json").read_text(encoding="utf-8"))
    assert [i["file_name"] for i in coco["images"]] == [
        str(pictures / "a.png"),
        str(pictures / "sub/猫.jpg"),
    ]
    assert len((tmp_path / "out/sidecars/sub/猫.txt").read_text().splitlines()) == sum(
        annotation["image_id"] == 1 for annotation in coco["annotations"]
    )


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
