"""Runs on a real Ray of this machine, with several workers, of which some are killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capfilt_stub import StubBlip
from dying_stub import DyingStub
from PIL import Image

from blip_fast.capfilt import CapFilter, CapFiltOptions, StageFailed, run_capfilt, run_on_ray
from blip_fast.cli import main

ray: Any = pytest.importorskip("ray", reason="needs the extra blip-fast[ray]: `make ray`")
pytest.importorskip("ray.data", reason="needs the extra blip-fast[ray]: `make ray`")

HELPERS = Path(__file__).parents[1] / "helpers"
OPTIONS = CapFiltOptions(batch_size=2, shard_size=3, gallery=4)
TIMES = {"duration", "start_time", "end_time", "stages", "slowest", "images_per_second"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: it takes its time to start. Its workers find the stubs."""
    found = [str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(found))
        patch.setenv("RAY_raylet_start_wait_time_s", "600")  # on a machine that is busy otherwise
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pictures, five shards of three; number 7 is white, and number 4 is broken."""
    folder = tmp_path_factory.mktemp("ray") / "pictures"
    folder.mkdir()
    for n in range(14):
        name = folder / f"{n:02}.jpg"
        level = 255 if n == 7 else n * 15
        Image.new("RGB", (24, 16), (level,) * 3).save(name)
        if n == 4:
            name.write_bytes(b"\xff\xd8\xff\xe0 and no more")
        name.with_suffix(".txt").write_text("bad" if n % 3 == 1 else f"picture {n}")
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run without Ray writes."""
    output = tmp_path_factory.mktemp("ray") / "plain"
    model = StubBlip()
    run_capfilt(pictures, output, model, model, OPTIONS)
    return contents(output)


def contents(output: Path) -> dict[str, Any]:
    """Every file of a run: bytes, and of the numbers those that are no times."""
    files: dict[str, Any] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            files[name] = {key: value for key, value in values.items() if key not in TIMES}
        elif path.is_file() and path.name != "report.html":
            files[name] = path.read_bytes()
    return files


def test_workers_share_a_run_and_one_is_killed(
    pictures: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    mark, counts = tmp_path / "mark", []
    spec = [partial(DyingStub, mark)]
    summary = run_on_ray(
        pictures, tmp_path / "out", spec, spec, OPTIONS, workers=2, progress=counts.append
    )
    assert mark.exists()  # a worker was killed in its shard, and another did it
    assert contents(tmp_path / "out") == undisturbed
    assert (summary.complete, summary.count, summary.successes) == (True, 14, 13)
    assert summary.report.is_file() and [f[0] for f in summary.failures] == ["04.jpg"]
    assert summary.done == 5 and sum(counts) == 14


def test_a_run_goes_on_where_another_was_stopped(
    pictures: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Of five shards the second and the fourth are done without Ray, and the rest with it."""
    output, model = tmp_path / "out", StubBlip()
    half = replace(OPTIONS, shard_index=1, num_shards=2)
    assert run_capfilt(pictures, output, model, model, half).done == 2
    times = {path: path.stat().st_mtime_ns for path in output.glob("*_stats.json")}
    spec = [partial(StubBlip)]
    counts: list[int] = []
    summary = run_on_ray(pictures, output, spec, spec, OPTIONS, workers=1, progress=counts.append)
    assert summary.complete and summary.done == 3 and sum(counts) == 8
    assert len(times) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert contents(output) == undisturbed
    # And again, where there is nothing left to do but to write what stands beside the shards.
    (output / "report.html").unlink()
    again = run_on_ray(pictures, output, spec, spec, OPTIONS, workers=1)
    assert again.complete and again.done == 0 and again.report.is_file()
    with pytest.raises(
        StageFailed, match=r"belongs to another run: threshold was 0\.5 and is 0\.7"
    ):
        run_on_ray(pictures, output, spec, spec, replace(OPTIONS, threshold=0.7), workers=1)


def test_a_shard_that_kills_its_workers_ends_the_run(pictures: Path, tmp_path: Path) -> None:
    spec = [partial(DyingStub, None)]
    with pytest.raises(StageFailed, match=r"shard 00002: .* processes have died at it"):
        run_on_ray(pictures, tmp_path / "out", spec, spec, OPTIONS, workers=1)
    assert not (tmp_path / "out" / "00002_stats.json").exists()
    healthy = [partial(StubBlip)]
    summary = run_on_ray(pictures, tmp_path / "out", healthy, healthy, OPTIONS, workers=1)
    assert summary.complete and summary.count == 14


def test_in_anyones_map_batches(pictures: Path) -> None:
    """One worker is killed in the middle, and the answers are those of a call without Ray."""
    rows = [
        {"image": path.read_bytes(), "key": path.name, "text": path.with_suffix(".txt").read_text()}
        for path in sorted(pictures.glob("*.jpg"))
    ]
    settings = {"captioners": partial(StubBlip), "options": OPTIONS}
    dataset = ray.data.from_items(rows, override_num_blocks=4).map_batches(
        CapFilter,
        fn_constructor_kwargs=settings,
        batch_size=5,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    answers = {row["key"]: row for row in dataset.iter_rows()}
    columns = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    alone = CapFilter(**settings)(columns)
    assert sorted(answers) == [row["key"] for row in rows]
    for place, row in enumerate(rows):
        answer = answers[row["key"]]
        for name in ("status", "candidates"):
            assert answer[name] == alone[name][place].as_py(), name


def test_the_command(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    words = ["capfilt", pictures, "--output", output, "--ray", "--ray-workers", 1]
    words += ["--captioner", "scenes", "--filter", "scenes", "--dtype", "float32"]
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output / 'report.html'}\n"
    assert "13 of 14 pictures read, 1 failed (failed_to_decode 1)" in captured.err
