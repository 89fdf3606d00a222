"""The whole course of training, a step or two of each stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import blip_fast
from blip_fast.scenes import stages
from blip_fast.scenes.pairs import LEAD
from blip_fast.scenes.stages import STAGES, stage_data, stage_recipe, train_scenes


def test_stages_follow_each_other_and_a_second_call_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_QUICK_VISION", 2)
    short = tuple(dataclasses.replace(stage, quick=2) for stage in STAGES)
    monkeypatch.setattr(stages, "STAGES", short)
    read = stages.read_recipe
    monkeypatch.setattr(
        stages,
        "read_recipe",
        lambda path, words: read(path, [*words, "batch_size=4", "warmup_steps=0"]),
    )
    said: list[str] = []
    model = train_scenes(tmp_path, quick=True, tell=said.append)
    assert [line.split(":")[0] for line in said if line.endswith("steps")] == [
        "vision",
        *(stage.name for stage in STAGES),
    ]
    loaded = blip_fast.load(model, device="cpu")
    assert loaded.config.kind == "pretrain" and loaded.image_size == 96
    answerer = blip_fast.load(tmp_path / "vqa" / "model", device="cpu")
    assert answerer.config.kind == "vqa"
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    assert len(before) == 1 + len(STAGES)
    train_scenes(tmp_path, quick=True, tell=said.append)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(ValueError, match="seed"):
        train_scenes(tmp_path, seed=1, quick=True, tell=said.append)


def test_each_stage_has_its_own_fresh_data() -> None:
    sources = []
    for stage in STAGES:
        recipe = stage_recipe(stage, Path("run"), seed=3, quick=False)
        assert not recipe.augment  # a mirror would make "left" false
        assert recipe.seed == 3 and recipe.together == (2 if stage.twins else 1)
        source = stage_data(stage, recipe)
        assert sum(source.counts) == (recipe.max_steps or 0) * recipe.batch_size
        assert not stage.twins or all(count % 2 == 0 for count in source.counts)
        sources.append(source)
    texts = [[source.open(0)[n].text for n in range(300)] for source in sources]
    led = [sum(text.startswith(LEAD) for text in part) / 300 for part in texts]
    assert led[0] == led[2] == 0 and 0.4 < led[1] < 0.6 and 0.4 < led[3] < 0.6
    assert len({source.world.seed for source in sources}) == len(STAGES)
    again = stage_data(STAGES[0], stage_recipe(STAGES[0], Path("run"), seed=4, quick=False))
    assert again.world.seed not in {source.world.seed for source in sources}
