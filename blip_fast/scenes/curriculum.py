"""How the embedded model is trained: four stages, each starting from what the one before wrote.

    1 vision     labels of cells                       vision.safetensors
    2 caption    LM                                    caption/
    3 pretrain   ITC, ITM and LM, on twins for half    pretrain/
    4 vqa        answers                               vqa/

The order matters: joint training from the start stays where ITM guesses. Stages 2 to 4 are recipes
of this folder, run by the project's own training; a stage that is done is not done again, and one
that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from blip_fast.config import preset
from blip_fast.data.samples import Source
from blip_fast.med.weights.start import start
from blip_fast.scenes.bootstrap import BootstrapOptions, Reading, bootstrap, save_vision
from blip_fast.scenes.pairs import SceneSource, World
from blip_fast.train.loop import Summary, train
from blip_fast.train.recipe import Recipe, Task, read_recipe
from blip_fast.train.run import config_of, loader_of, objective_of

RECIPES = Path(__file__).parent / "recipes"
VOCABULARY = Path(__file__).parent / "model" / "vocab.txt"

_BASE_SEED = 1000  # of worlds: stages share no picture


@dataclass(frozen=True)
class Budget:
    """Steps of each stage, of 64 pictures."""

    vision: int
    caption: int
    pretrain: int
    vqa: int


FULL = Budget(vision=1400, caption=4000, pretrain=5000, vqa=3000)
QUICK = Budget(vision=300, caption=400, pretrain=300, vqa=0)


def educate(
    output: Path, budget: Budget = FULL, seed: int = 0, tell: Callable[[str], None] = print
) -> Path:
    """Train the embedded model.

    Args:
        output: a folder for all stages; what it holds of them is not done again.
        budget: stages of 0 steps are left out.
        seed: of weights and of all pictures.

    Returns:
        the folder of the pretrained model.
    """
    output.mkdir(parents=True, exist_ok=True)
    vision = output / "vision.safetensors"
    if not vision.exists():
        tell(f"stage 1: labels, {budget.vision} steps")
        options = BootstrapOptions(steps=budget.vision, seed=seed)
        save_vision(bootstrap(preset("scenes"), options, _telling(tell), every=100), vision)
    run_stage("caption", output, budget.caption, seed, tell, vision_init=str(vision))
    captioner, model = output / "caption" / "model", output / "pretrain" / "model"
    run_stage("pretrain", output, budget.pretrain, seed, tell, pretrained=str(captioner))
    if budget.vqa:
        run_stage("vqa", output, budget.vqa, seed, tell, pretrained=str(model))
    return model


def run_stage(
    task: Task,
    output: Path,
    steps: int,
    seed: int,
    tell: Callable[[str], None],
    *,
    vision_init: str = "",
    pretrained: str = "",
) -> Summary:
    """One stage by its recipe; it goes on where it was stopped."""
    recipe, _ = read_recipe(RECIPES / f"{task}.yaml")
    recipe = replace(recipe, seed=seed, max_steps=steps, warmup_steps=min(100, steps // 4))
    tell(f"{task}: {steps} steps")
    model, tokenizer, notes = start(
        task,
        config=config_of(recipe),
        image_size=recipe.image_size,
        vision_init=vision_init,
        pretrained=pretrained,
        vocabulary=str(VOCABULARY),
        seed=seed,
    )
    for note in notes:
        tell(note)
    model.regularise(recipe.text_dropout, recipe.drop_path)
    objective = objective_of(recipe, model, tokenizer)
    loader = loader_of(recipe, objective, sources_of(recipe, steps))
    folder = output / task
    folder.mkdir(exist_ok=True)
    recipe.write(folder / "recipe.yaml")
    return train(recipe, folder, objective, loader, tokenizer, torch.device("cpu"))


def sources_of(recipe: Recipe, steps: int) -> Sequence[Source]:
    """Fresh pictures for all steps; in joint training, half of them in twins."""
    number, size = steps * recipe.batch_size, recipe.image_size
    tasks: dict[Task, int] = {"caption": 1, "pretrain": 2, "vqa": 3}
    world = World(_BASE_SEED * tasks[recipe.task] + recipe.seed, size=size)
    if recipe.task != "pretrain":
        return [SceneSource(world, number, recipe.task)]
    twins = replace(world, seed=world.seed + _BASE_SEED // 2, twins=True)
    half = number // 4 * 2  # whole twins
    return [SceneSource(world, half), SceneSource(twins, number - half)]


def _telling(tell: Callable[[str], None]) -> Callable[[int, float, Reading], None]:
    def report(step: int, loss: float, reading: Reading) -> None:
        cells = "  ".join(f"{name} {share:.3f}" for name, share in reading.cells.items())
        tell(f"step {step}  loss {loss:.3f}  {cells}  pairs {reading.pairs:.3f}")

    return report
