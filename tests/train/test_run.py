"""Whole runs from a recipe: data of several kinds, a restart, and a model that loads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_vocabulary
from PIL import Image

import blip_fast
from blip_fast.text import Tokenizer
from blip_fast.train.recipe import build_recipe
from blip_fast.train.run import run
from blip_fast.train.vigil import NonFinite

CAPTIONS = ["a red dog", "two blue car", "the cat on a table", "a house in the street", "a bird"]
SMALL = {"width": 64, "depth": 1, "heads": 1, "mlp_width": 128}


def picture(path: Path, seed: int) -> Path:
    noise = torch.randint(0, 256, (40, 48, 3), generator=torch.Generator().manual_seed(seed))
    Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of ten pairs, of which one picture is broken, and two web files of four pairs."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for n in range(10):
        name = picture(folder / f"{n}.png", n).name
        rows.append({"image": name, "caption": CAPTIONS[n % 5], "image_id": n // 2})
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "pairs.json").write_text(json.dumps(rows))
    (folder / "web").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "web" / f"{shard:05d}.tar", "w") as tar:
            for n in range(4):
                image = picture(folder / "web.png", 100 + 10 * shard + n).read_bytes()
                for suffix, content in ((".png", image), (".txt", CAPTIONS[n].encode())):
                    member = tarfile.TarInfo(f"{shard}{n}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    Tokenizer(tiny_vocabulary()).write(folder / "vocab.txt")
    return folder


def recipe(data: Path, task: str = "pretrain", **more: Any) -> Any:
    text = {**SMALL, "vocab_size": 128, "max_positions": 64, "dec_id": 126, "enc_id": 127}
    values = {
        "task": task,
        "vision": {**SMALL, "patch_size": 8},
        "text": text,
        "image_size": 16,
        "vocabulary": str(data / "vocab.txt"),
        "train_file": [str(data / "pairs.json")],
        "batch_size": 4,
        "queue_size": 7,
        "max_epoch": 3,
        "warmup_steps": 1,
        "workers": 2,
        "log_steps": 1,
        "checkpoint_steps": 2,
        "window": 2,
        **more,
    }
    return build_recipe(values)[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = blip_fast.load(folder / "model", dtype="float32", device="cpu")
    return dict(model.med.named_parameters())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_pretraining_from_a_manifest_and_rotating_shards(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = recipe(data, laion_path=str(data / "web"))
    summary = run(settings, tmp_path, said.append)
    assert (summary.step, summary.epoch) == (9, 3)  # 10 + 4 pairs: 3 steps an epoch
    assert set(summary.losses) == {"itc", "itm", "lm"}
    assert said[0] == "weights from nothing"
    steps = [line for line in lines(tmp_path) if "loss_itc" in line]
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert steps[-1]["skipped"] >= 3  # the broken picture, once an epoch
    (bad,) = (line for line in said if "bad sample is replaced" in line)  # said once
    assert "failed_to_decode" in bad and "3.png" in bad
    assert said[-1].endswith(f"bad samples {steps[-1]['skipped']}")
    assert steps[0]["images_per_second"] > 0 and all(step["data_wait"] <= 1 for step in steps)
    model = blip_fast.load(tmp_path / "model", dtype="float32", device="cpu")
    assert model.config.kind == "pretrain"
    assert model.caption(data / "0.png", max_length=8, min_length=2).texts[0]
    again = run(settings, tmp_path, said.append)
    assert again.step == 9 and again.resumed_from == 9


def test_a_run_in_two_parts_ends_as_one_in_one(data: Path, tmp_path: Path) -> None:
    run(recipe(data, text_dropout=0.2), tmp_path / "whole", print)
    run(recipe(data, text_dropout=0.2, max_steps=3), tmp_path / "parts", print)
    summary = run(recipe(data, text_dropout=0.2), tmp_path / "parts", print)
    assert summary.resumed_from == 3
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    first = (tmp_path / "whole" / "log.jsonl").read_text().count("loss_itm")
    assert (tmp_path / "parts" / "log.jsonl").read_text().count("loss_itm") == first


@pytest.mark.parametrize("task", ["caption", "retrieval"])
def test_finetuning_starts_from_what_pretraining_wrote(
    data: Path, tmp_path: Path, task: str
) -> None:
    run(recipe(data, max_steps=1), tmp_path / "pretrained", print)
    settings = recipe(data, task, max_steps=2, schedule="cosine")
    settings = settings.__class__(
        **{
            **settings.__dict__,
            "pretrained": str(tmp_path / "pretrained" / "model"),
            "vision": {},
            "text": {},
        }
    )
    summary = run(settings, tmp_path / task, print)
    assert summary.step == 2
    assert blip_fast.load(tmp_path / task / "model").config.kind == task


def test_pictures_stay_as_they_are_without_augmentation(data: Path, tmp_path: Path) -> None:
    summary = run(recipe(data, "caption", augment=False, max_steps=1), tmp_path, print)
    assert summary.step == 1


def test_a_recipe_without_data_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no data; set train_file"):
        run(recipe(data, train_file=[]), tmp_path, print)
    with pytest.raises(ValueError, match="has no .json, .jsonl, .tar, .parquet"):
        run(recipe(data, laion_path=str(tmp_path)), tmp_path, print)


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_a_run_that_diverges_names_the_step(data: Path, tmp_path: Path, task: str) -> None:
    settings = recipe(data, task, init_lr=1e30, warmup_lr=1e30, clip_grad_norm=None)
    with pytest.raises(NonFinite, match="^step 2: "):
        run(settings, tmp_path, lambda line: None)
