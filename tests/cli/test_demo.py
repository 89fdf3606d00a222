from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_fast.cli.demo import samples
from blip_fast.data import read_folder
from blip_fast.data.table import read_rows


def test_samples_are_small_and_show_every_case() -> None:
    records = list(read_folder(samples()))
    assert 20 <= len(records) <= 40
    assert all(record.path.stat().st_size <= 15_000 for record in records)
    texts = {record.key: record.web_text for record in records}
    assert "" in texts.values() and None in texts.values()
    truth = json.loads((samples() / "truth.json").read_text())
    assert all(texts[key] for key in truth) and len(truth) == len(records) - 3
    verdicts = [said["verdict"] for said in truth.values()]
    assert 8 <= verdicts.count("true") <= 15  # noise for half of them, as of the web
    with pytest.raises(OSError), Image.open(samples() / "truncated.jpg") as image:
        image.load()


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
    assert "1 failed (failed_to_decode 1)" in err
    statuses = [row["status"] for row in read_rows(report.with_name("00000.parquet"))]
    assert statuses.count("success") == len(statuses) - 1
    assert run("demo")[0] == 0  # its own folder is replaced


def test_demo_replaces_no_other_run(run: Any, pictures: Path, tmp_path: Path) -> None:
    model = ("--captioner", "scenes", "--filter", "scenes")
    assert run("capfilt", pictures, "--output", tmp_path / "mine", *model)[0] == 0
    code, _, err = run("demo", "--output", tmp_path / "mine")
    assert code == 1 and "belongs to another run: source was" in err
