"""Nothing is lost and nothing is there twice, whenever a run is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_fast.capfilt import read_rows

HELPERS = Path(__file__).parents[1] / "helpers"
TIMES = {"duration", "start_time", "end_time", "stages"}

# BLIP_FAST_KILLS=50 kills as often; the default keeps the suite quick.
KILLS = int(os.environ.get("BLIP_FAST_KILLS", "8"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen pictures in five shards of four; one is broken, texts are good, bad, or none."""
    folder = tmp_path_factory.mktemp("resume") / "pictures"
    folder.mkdir()
    for n in range(18):
        name = folder / f"{n:02}.jpg"
        if n == 6:
            name.write_bytes(b"\xff\xd8\xff\xe0 and no more")
        else:
            Image.new("RGB", (24, 16), (n * 13, 100, 255 - n * 13)).save(name)
        if n % 3:
            name.with_suffix(".txt").write_text("bad" if n % 3 == 1 else f"picture {n}")
    return folder


def start(kind: str, job: dict[str, Any], **order: Any) -> list[int]:
    """Exit codes of the processes of `capfilt_job`."""
    order = {"kind": kind, "job": {k: str(v) if k in ("source", "output") else v for k, v in
             job.items()}, **order}  # fmt: skip
    done = subprocess.run(
        [sys.executable, HELPERS / "capfilt_job.py", json.dumps(order)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contents(output: Path) -> dict[str, Any]:
    """Every file of a run: bytes, and of the numbers those that are no times."""
    files: dict[str, Any] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.suffix == ".json":
            stats = json.loads(path.read_text())
            files[name] = {k: v for k, v in stats.items() if k not in TIMES}
            for changing in ("images_per_second", "slowest"):
                files[name].pop(changing, None)
        elif path.name != "report.html":  # it shows the times
            files[name] = path.read_bytes() if path.is_file() else None
        else:
            files[name] = "a page"
    return files


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert start("run", {"source": pictures, "output": output}) == [0]
    files = contents(output)
    assert sorted(name for name in files if name.endswith(".tar")) == [
        f"0000{n}.tar" for n in range(5)
    ]
    assert len(list(read_rows(output))) == 18 and ".work" not in files
    return files


def test_killed_before_every_step_that_others_can_see(
    pictures: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """Every rename, every flush to the disk, every claim: killed just before it."""
    codes = start("steps", {"source": pictures, "output": tmp_path / "out"})
    assert codes[-1] == 0 and set(codes[:-1]) == {-signal.SIGKILL} and len(codes) > 40
    assert contents(tmp_path / "out") == undisturbed


def test_killed_at_random_moments(
    pictures: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = {"source": pictures, "output": tmp_path / "out", "slow": 0.01}
    codes = start("random", job, kills=(KILLS, 0.25, 1))
    assert codes[-1] == 0 and len(codes) == KILLS + 1
    assert contents(tmp_path / "out") == undisturbed


def test_three_processes_share_the_work(
    pictures: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = {"source": pictures, "output": tmp_path / "out", "slow": 0.01}
    # Each may leave before the last shard is done; a fourth finds all of them and adds them up.
    assert start("together", job) == [0, 0, 0, 0]
    assert contents(tmp_path / "out") == undisturbed


def test_parts_of_a_slurm_array_make_the_whole(
    pictures: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job = {"source": pictures, "output": tmp_path / "out", "num_shards": 3}
    assert start("each", job, changes=[{"shard_index": n} for n in (2, 0)]) == [0, 0]
    assert (
        len(list(read_rows(tmp_path / "out"))) == 12 and not (tmp_path / "out/totals.json").exists()
    )
    assert start("each", job, changes=[{"shard_index": 1}]) == [0]
    ours, theirs = contents(tmp_path / "out"), dict(undisturbed)
    for files in (ours, theirs):  # the settings that the last of them had
        files["totals.json"] = {**files["totals.json"], "settings": None}
    assert ours == theirs
