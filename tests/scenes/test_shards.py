from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip_fast.cli import main
from blip_fast.data.table import read_rows
from blip_fast.scenes.pairs import LEAD, SceneSource, World
from blip_fast.scenes.parse import judge
from blip_fast.scenes.render import render
from blip_fast.scenes.world import SPLITS, Scene, Split


def make(folder: Path, *flags: object) -> Path:
    words = ["scenes", "make", folder, "--pairs", 12, "--size", 32, "--seed", 5, *flags]
    assert main([str(word) for word in words]) == 0
    return folder


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("task", ["caption", "vqa", "nlvr"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, task: str) -> None:
    flags = ("--task", task, *(("--noise", 0.5, "--per-shard", 5) if task == "caption" else ()))
    one, two = make(tmp_path / "one", *flags), make(tmp_path / "two", *flags)
    assert digest(one) == digest(two)
    other = make(tmp_path / "other", *flags, "--seed", 6)
    assert set(digest(one)) == set(digest(other)) and digest(one) != digest(other)


def test_shards_are_img2dataset_s_with_the_truth(tmp_path: Path) -> None:
    folder = make(tmp_path / "web", "--noise", 0.5, "--per-shard", 5)
    names = [f"0000{n}{end}" for n in range(3) for end in (".parquet", ".tar", "_stats.json")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    counts = [json.loads((folder / f"0000{n}_stats.json").read_text())["count"] for n in range(3)]
    assert counts == [5, 5, 2]
    rows = [row for n in range(3) for row in read_rows(folder / f"0000{n}.parquet")]
    assert [row["key"] for row in rows] == [f"{n:09d}" for n in range(12)]
    assert {row["status"] for row in rows} == {"success"}
    members = _members(folder)
    assert [m.rpartition(".")[2] for m in members] == ["png", "txt", "json"] * 12
    for row in rows:
        truth = json.loads(members[f"{row['key']}.json"])
        scene = Scene.from_dict(truth["scene"])
        text = members[f"{row['key']}.txt"].decode()
        assert {**row, "scene": truth["scene"]} == truth
        assert text == row["caption"] and judge(text, scene).word == row["verdict"]
        with Image.open(io.BytesIO(members[f"{row['key']}.png"])) as image:
            np.testing.assert_array_equal(np.asarray(image), render(scene, 32))
    assert len({row["noise"] for row in rows}) > 2


def _members(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        assert path.read_bytes()[-1024:] == bytes(1024)
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                found[member.name] = data.read()
    return found


def test_manifests_have_the_reference_s_rows(tmp_path: Path) -> None:
    folder = make(tmp_path / "vqa", "--task", "vqa")
    rows: list[dict[str, Any]] = json.loads((folder / "vqa.json").read_text())
    assert len(rows) == 12 and rows[3]["question_id"] == 3
    assert all(set(r) == {"question_id", "image", "dataset", "question", "answer"} for r in rows)
    folder = make(tmp_path / "nlvr", "--task", "nlvr")
    rows = json.loads((folder / "nlvr.json").read_text())
    assert {row["label"] for row in rows} == {"True", "False"}
    for row in rows:
        assert len({(folder / image).read_bytes() for image in row["images"]}) == 2


def test_a_used_folder_and_bad_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    assert main(["scenes", "make", str(tmp_path), "--pairs", "3"]) == 1
    assert "holds 00000.tar already" in capsys.readouterr().err
    assert main(["scenes", "make", str(tmp_path / "a"), "--pairs", "0"]) == 1
    assert "0 samples were asked for" in capsys.readouterr().err
    words = ["scenes", "make", str(tmp_path / "b"), "--pairs", "3", "--task", "vqa"]
    assert main([*words, "--noise", "0.5"]) == 1
    assert "--task vqa has none" in capsys.readouterr().err


@pytest.mark.parametrize("task, images", [("caption", 1), ("vqa", 1), ("nlvr", 2)])
def test_a_source_gives_any_sample_in_any_order(task: str, images: int) -> None:
    source = SceneSource(World(1, size=32, noise=0.5), 25, task, per_shard=10)
    assert list(source.counts) == [10, 10, 5]
    shard = source.open(2)
    assert len(shard) == 5
    backwards = [shard[n] for n in reversed(range(5))]
    assert backwards[::-1] == [source.open(2)[n] for n in range(5)]
    assert all(len(sample.images) == images for sample in backwards)
    assert len({sample.key for sample in backwards}) == 5
    assert all((sample.label is None) == (task != "nlvr") for sample in backwards)
    assert all(bool(sample.answers) == (task == "vqa") for sample in backwards)


def test_a_source_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="'itm'; it must be one of caption, vqa, nlvr"):
        SceneSource(World(0), 10, "itm")


def test_a_share_of_neighbours_are_twins() -> None:
    none, half, all_ = (World(2, size=32, twins=share) for share in (0.0, 0.5, 1.0))
    count = 0
    for number in range(0, 400, 2):
        pairs = [[world.pair(n) for n in (number, number + 1)] for world in (none, half, all_)]
        assert pairs[1] in (pairs[0], pairs[2])
        count += pairs[1] == pairs[2]
    assert 75 <= count <= 125
    with pytest.raises(ValueError, match="the share of twins is 1.5"):
        World(2, twins=1.5)


def test_neighbouring_twins_have_each_its_own_caption() -> None:
    world = World(2, size=32, twins=1.0)
    for number in range(0, 120, 2):
        (one, text), (two, other_text) = world.pair(number), world.pair(number + 1)
        assert judge(text.text, one).true and judge(other_text.text, two).true
        assert judge(text.text, two).word == judge(other_text.text, one).word == "false"


def test_worlds_of_other_seeds_and_splits_share_no_scene() -> None:
    worlds = [World(seed, split, twins=twins) for seed, split, twins in _WORLDS]
    scenes = [world.scene(number) for world in worlds for number in range(60)]
    assert len(set(scenes)) == len(scenes)
    assert [world.scene(7) for world in worlds] == [world.scene(7) for world in worlds]


_WORLDS: list[tuple[int, Split, float]] = [
    (seed, split, twins) for seed in (0, 1) for split in SPLITS for twins in (0.0, 1.0)
]


def test_a_lead_is_the_prompt_and_changes_no_truth() -> None:
    plain, led = World(4, size=32), World(4, size=32, lead=0.5)
    with_lead = 0
    for number in range(200):
        (scene, text), (same, other) = plain.pair(number), led.pair(number)
        assert same == scene and other.verdict == "true"
        assert other.text in (text.text, LEAD + text.text)
        with_lead += other.text != text.text
    assert 80 < with_lead < 120
