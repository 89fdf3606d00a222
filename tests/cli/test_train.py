"""The verbs train and report: what they pass on, what they refuse, and one real run of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import tiny_vocabulary
from PIL import Image

import blip_fast
from blip_fast.train.recipe import Recipe, read_recipe

SMALL = """
task: pretrain
vision: {patch_size: 8, width: 64, depth: 1, heads: 1, mlp_width: 64}
text: {vocab_size: 128, dec_id: 126, enc_id: 127, width: 64, depth: 1, heads: 1, mlp_width: 64}
image_size: 16
batch_size: 2
queue_size: 4
warmup_steps: 0
max_epoch: 1
log_steps: 1
workers: 1
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures, the last broken, a manifest with two captions of the first, a vocabulary."""
    for number in range(3):
        Image.new("RGB", (24, 20), (number * 80, 40, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    rows = [{"image": f"{n}.png", "caption": f"a red dog {n}", "image_id": n} for n in (0, 0, 1, 2)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocabulary()) + "\n")
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def settings(data: Path) -> list[str]:
    return [f"train_file={data / 'a.json'}", f"vocabulary={data / 'vocab.txt'}"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, Path]]:
    """What the verb asks for, in place of training."""
    import blip_fast.train.run

    calls: list[tuple[Recipe, Path]] = []

    def run(recipe: Recipe, output: Path) -> Any:
        calls.append((recipe, output))
        return SimpleNamespace(step=7, epoch=1, losses={"lm": 1.5}, model=output / "model")

    monkeypatch.setattr(blip_fast.train.run, "run", run)
    return calls


def test_settings_reach_the_recipe(run: Any, trained: list, data: Path) -> None:
    code, out, err = run(
        "train", data / "small.yaml", *settings(data), "init_lr=1e-5", "k_test=3",
        "--output", data / "run",
    )  # fmt: skip
    ((recipe, output),) = trained
    assert (code, output) == (0, data / "run")
    assert recipe == read_recipe(data / "small.yaml", [*settings(data), "init_lr=1e-5"])[0]
    assert out == f"7 steps, 1 epochs  lm 1.5000\n{data / 'run' / 'model'}\n"
    assert err == "not used in pretrain training: k_test\n"


def test_packaged_recipes_are_found_by_name(run: Any, trained: list, data: Path) -> None:
    words = ["pretrained=", *settings(data)]
    assert run("train", "caption_coco", *words, "--output", data / "run")[0] == 0
    assert (trained[0][0].task, trained[0][0].max_epoch) == ("caption", 5)


@pytest.mark.parametrize(
    "words, message",
    [
        (["pretrain", "batchsize=3"], "no setting 'batchsize'; did you mean batch_size"),
        (["pretrain", "batch_size"], "'batch_size' is no setting; write key=value"),
        (["nothing"], "no recipe nothing; give a YAML file, or one of caption_coco"),
        (["pretrain"], "the recipe names no data; set train_file"),
        (["vqa", "train_file=no.json"], "train_file names no.json, which does not exist"),
    ],
)
def test_what_is_refused_before_anything_is_built(
    run: Any, trained: list, tmp_path: Path, words: list[str], message: str
) -> None:
    code, out, err = run("train", *words, "--output", tmp_path / "run")
    assert code == 1 and not out and not trained
    assert err.startswith("blip-fast: error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_speaks(
    run: Any, trained: list, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    words = ["train", data / "small.yaml", "--output", data / "run"]
    assert run(*words, *settings(data), "k_test=3") == (0, "", "")
    assert run(*words, "batchsize=3") == (1, "", "")
    code, _, err = run(*words)  # files: each machine has its own
    assert code == 1 and "names no data" in err


@pytest.mark.parametrize("words", [["pretrain"], ["--output", "run"]])
def test_recipe_and_output_are_needed(run: Any, words: list[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run("train", *words)
    assert leaving.value.code == 2


def test_settings_may_stand_on_either_side_of_the_output(
    run: Any, trained: list, data: Path
) -> None:
    recipe, output = [data / "small.yaml"], ["--output", data / "run"]
    words = settings(data)
    for order in (recipe + words + output, recipe + output + words, output + recipe + words):
        assert run("train", *order)[0] == 0
    assert trained == [trained[0]] * 3


def test_a_run_and_its_page(run: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained as torchrun starts it, and shown with captions of the model that came out."""
    monkeypatch.undo()  # the model of the run, not the fixture's
    done = subprocess.run(
        [sys.executable, "-m", "blip_fast", "train", str(data / "small.yaml"), *settings(data),
         "--output", str(data / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 steps, 1 epochs" in done.stdout and "itc" in done.stdout
    assert blip_fast.load(data / "run" / "model", device="cpu").config.kind == "pretrain"
    code, out, err = run("report", data / "run", "--samples", "2", "--device", "cpu")
    assert (code, out, err) == (0, f"{data / 'run' / 'report.html'}\n", "")
    text = (data / "run" / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 2, "two pictures, not one picture twice"
    assert "a red dog 0" in text and "a red dog 1" in text and "step 2: " in text

    # A page of curves without captions: the data are gone, or none were asked for.
    (data / "a.json").unlink()
    assert run("report", data / "run")[0] == 0
    text = (data / "run" / "report.html").read_text(encoding="utf-8")
    assert "a.json" in text.split("Sample captions")[1] and "data:image" not in text
    assert run("report", data / "run", "--samples", "0")[0] == 0
    assert "none were asked for" in (data / "run" / "report.html").read_text(encoding="utf-8")


def test_report_of_what_is_no_run(run: Any, loads: list, tmp_path: Path) -> None:
    code, _, err = run("report", tmp_path)
    assert code == 1 and "has no log.jsonl, so it is no training run's folder" in err
    code, _, err = run("report", tmp_path, "--samples", "-1")
    assert code == 1 and "--samples is -1" in err
    assert not loads and not list(tmp_path.glob("*.html"))
