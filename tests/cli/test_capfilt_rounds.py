"""`blip-fast capfilt --rounds`, to its end, with a small command between two rounds."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from blip_fast.cli import main
from blip_fast.cli.common import CAPTIONER, FILTER

# Trains nothing: it looks whether there are pairs, and leaves the packaged model as its own.
TRAIN = """
import pathlib, shutil, sys
kept, captioner, output = map(pathlib.Path, sys.argv[1:])
assert list(kept.glob("*.tar")), kept
(output / "seen").write_text(f"{captioner.name}")
import blip_fast
shutil.copytree(pathlib.Path(blip_fast.__file__).parent / "scenes/model", output / "captioner")
"""


@pytest.fixture
def train(tmp_path: Path) -> str:
    script = tmp_path / "train it.py"
    script.write_text(TRAIN, encoding="utf-8")
    return f"'{sys.executable}' '{script}' {{kept}} {{captioner}} {{output}}"


def test_two_rounds(run: Any, pictures: Path, loads: list, tmp_path: Path, train: str) -> None:
    out = tmp_path / "out"
    command = ("capfilt", pictures, "--output", out, "--threshold", 0)
    command += ("--rounds", 2, "--finetune", train)
    code, said, err = run(*command)
    assert code == 0 and "after round 1: " in err
    reports = [str(out / name / "report.html") for name in ("round_01", "round_02")]
    assert said.splitlines() == reports and all(Path(path).is_file() for path in reports)
    trained = str(out / "round_01_models/captioner")
    assert [call["source"] for call in loads] == [CAPTIONER, FILTER, trained, FILTER]
    with tarfile.open(out / "round_02/00000.tar") as tar:
        assert any(name.endswith(".jpg") for name in tar.getnames())
    assert json.loads((out / "rounds.json").read_text())["models"][1]["captioner"] == trained
    assert (out / "round_01_models/seen").read_text() == Path(CAPTIONER).name
    code, said, err = run(*command)  # all is done: nothing is loaded again
    assert code == 0 and said.splitlines() == reports and len(loads) == 4


def test_refusals_come_before_work(run: Any, pictures: Path, loads: list, tmp_path: Path) -> None:
    command = ("capfilt", pictures, "--output", tmp_path / "out", "--rounds", 2)
    finetune = ("--finetune", "true {output}")
    for more, message in (
        ((), "2 rounds need a command that trains between them"),
        (("--finetune", "true"), "no command names {output}"),
        (
            (*finetune, "--captioner", "a", "--captioner", "b"),
            "one captioner and one filter; 2",
        ),
        ((*finetune, "--overwrite"), "--overwrite does not go with --rounds"),
        ((*finetune, "--num-shards", 2), "--num-shards 2 does not go with --rounds"),
    ):
        code, _, err = run(*command, *more)
        assert code == 1 and message in err
    assert loads == [] and not (tmp_path / "out").exists()


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["capfilt", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "rounds of bootstrapping" in text and "--rounds 2 --finetune './train.sh" in text
    assert all(f"{{{place}}}" in text for place in ("kept", "captioner", "filter", "output"))
