from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip_fast.config import BlipConfig, VisionConfig, preset
from blip_fast.med.vision import VisionTransformer
from blip_fast.scenes.bootstrap import (
    BootstrapOptions,
    Probes,
    Reading,
    bootstrap,
    rate,
    read,
    save_vision,
)
from blip_fast.scenes.labels import CELLS, IGNORE, label, trained_pairs
from blip_fast.scenes.world import COLOURS, HELD_OUT, SHAPES, SIZES, TEXTURES, sample_scene

SMALL = dataclasses.replace(
    preset("scenes"),
    vision=VisionConfig(image_size=48, patch_size=16, width=64, depth=1, heads=1, mlp_width=128),
)


def test_labels_say_what_stands_where() -> None:
    scenes = [sample_scene(seed) for seed in range(50)]
    labels = label(scenes)
    for n, scene in enumerate(scenes):
        standing = {thing.cell: thing for thing in scene.things}
        assert labels.number[n] == len(standing)
        assert int(labels.pairs[n].sum()) == len({(t.colour, t.shape) for t in scene.things})
        for cell in range(CELLS):
            found = [int(labels.cells[k][n, cell]) for k in ("shape", "colour", "size", "texture")]
            if (thing := standing.get(cell)) is None:
                assert found == [len(SHAPES), IGNORE, IGNORE, IGNORE]
            else:
                names = (SHAPES, COLOURS, SIZES, TEXTURES)
                named = [values[i] for values, i in zip(names, found, strict=True)]
                assert named == [thing.shape, thing.colour, thing.size, thing.texture]
    assert int((~trained_pairs()).sum()) == len(HELD_OUT)
    assert not (labels.pairs[:, ~trained_pairs()]).any()


def test_training_reads_better_and_repeats_itself() -> None:
    options = BootstrapOptions(steps=40, batch_size=16, warmup=5)

    def run() -> tuple[VisionTransformer, list[tuple[float, Reading]]]:
        seen: list[tuple[float, Reading]] = []
        vision = bootstrap(SMALL, options, lambda _, loss, r: seen.append((loss, r)), every=20)
        return vision, seen

    (vision, seen), (again, repeated) = run(), run()
    assert seen == repeated
    assert all(torch.equal(a, b) for a, b in zip(*map(_parameters, (vision, again)), strict=True))
    assert seen[-1][0] < 0.8 * 18  # about 18 at the start
    assert seen[-1][1].cells["empty"] > 0.6 and seen[-1][1].background > 0.9


def _parameters(vision: VisionTransformer) -> list[torch.Tensor]:
    return [p.detach() for p in vision.parameters()]


def test_probes_read_each_cell_from_its_own_patches() -> None:
    probes = Probes(8)
    for grid in (3, 6, 7):
        tokens = torch.randn(2, 1 + grid**2, 8)
        one = probes.cells(tokens)
        changed = tokens.clone()
        changed[:, 1] += 1  # the patch in the top left corner
        other = probes.cells(changed)
        for name in one:
            assert one[name].shape[:2] == (2, CELLS)
            differs = (one[name] != other[name]).any(-1)
            assert differs[:, 0].all() and not differs[:, 1:].any()


def test_every_patch_is_asked_for_its_cell() -> None:
    for grid, first, last in ((3, [0, 1, 2], 8), (6, [0, 0, 1, 1, 2, 2], 8), (7, [0, 0, 0, 1], 8)):
        logits, truth = Probes(8).places(torch.randn(2, 1 + grid**2, 8))
        assert logits.shape == (2, grid**2, CELLS) and truth.shape == (grid**2,)
        assert truth[: len(first)].tolist() == first and truth[-1] == last


def test_a_reader_of_nothing_reads_nothing() -> None:
    vision = VisionTransformer(SMALL.vision)
    reading = read(vision, Probes(64), number=64)
    assert reading.cells["colour"] < 0.4 and reading.cells["shape"] < 0.4 and reading.pairs < 0.1


def test_the_rate_warms_up_and_ends_at_nothing() -> None:
    options = BootstrapOptions(steps=100, warmup=10, learning_rate=1.0)
    rates = [rate(step, options) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[100] == pytest.approx(0)


def test_the_file_holds_the_names_of_a_whole_model(tmp_path: Path) -> None:
    from blip_fast.med.blip import MED

    vision = VisionTransformer(SMALL.vision)
    save_vision(vision, tmp_path / "made" / "vision.safetensors")
    state = load_file(tmp_path / "made" / "vision.safetensors")
    whole = dict(MED(BlipConfig(vision=SMALL.vision, text=SMALL.text)).named_parameters())
    assert {n for n in whole if n.startswith("vision.")} == set(state)
    assert all(whole[name].shape == tensor.shape for name, tensor in state.items())
