"""The embedded model from nothing, by one command: vision, then LM, then all objectives; and VQA.

The order is that of BLIP's own ancestry: a vision encoder that already sees, a language model on
top of it, and only then contrast and matching; joint from the start, ITM stays at its prior. The
joint objectives are trained twice: on twins alone, which teach ITM what is hard, then on a mixture,
which reminds it of the rest. VQA is a branch from the first of the two, as BLIP's own is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blip_fast.config import preset
from blip_fast.scenes.bootstrap import BootstrapOptions, Reading, bootstrap, save_vision
from blip_fast.scenes.pairs import SceneSource, World
from blip_fast.train.recipe import Recipe, read_recipe
from blip_fast.train.run import run

RECIPES = Path(__file__).parent / "recipes"
VOCABULARY = Path(__file__).parent / "model" / "vocab.txt"
VISION = "vision.safetensors"


@dataclass(frozen=True)
class Stage:
    """A stage of training by recipe.

    Attributes:
        name: of its folder below the output.
        recipe: the file's name.
        after: the stage whose model it starts from; the vision encoder's where empty.
        data: of `SceneSource`, "caption" or "vqa".
        twins, lead: see `World`.
        quick: steps of a run that only shows how it learns.
        changes: of the recipe.
    """

    name: str
    recipe: str
    after: str
    data: str
    twins: float
    lead: float
    quick: int
    changes: tuple[str, ...] = ()


_AGAIN = ("max_steps=2000", "init_lr=0.0005")
STAGES = (
    Stage("lm", "lm", "", data="caption", twins=0.0, lead=0.0, quick=500),
    Stage("joint", "joint", "lm", data="caption", twins=1.0, lead=0.5, quick=300),
    Stage("vqa", "vqa", "joint", data="vqa", twins=0.0, lead=0.0, quick=300),
    Stage("again", "joint", "joint", "caption", 0.5, 0.5, quick=100, changes=_AGAIN),
)
_QUICK_VISION = 500


def train_scenes(
    output: Path, seed: int = 0, quick: bool = False, tell: Callable[[str], None] = print
) -> Path:
    """Train all stages, or go on where an earlier call stopped.

    Args:
        output: a folder; each stage has its own within it.
        seed: of all weights and all data.
        quick: a quarter of an hour of one core, to see it learn.

    Returns:
        the folder of the model that captions and matches.

    Raises:
        ValueError: where `output` holds a run of other settings.
    """
    vision = output / VISION
    if not vision.exists():
        steps = _QUICK_VISION if quick else BootstrapOptions.steps
        tell(f"vision: {steps} steps")
        trained = bootstrap(preset("scenes"), BootstrapOptions(steps=steps, seed=seed), _told(tell))
        save_vision(trained, vision)
    for stage in STAGES:
        recipe = stage_recipe(stage, output, seed, quick)
        tell(f"{stage.name}: {recipe.max_steps} steps")
        run(recipe, output / stage.name, tell, [stage_data(stage, recipe)])
    return output / "again" / "model"


def stage_recipe(stage: Stage, output: Path, seed: int, quick: bool) -> Recipe:
    """The recipe of a stage, with its starting point and seed."""
    words = [f"seed={seed}", *stage.changes]
    if stage.after:
        words += [f"pretrained={output / stage.after / 'model'}"]
    else:
        words += [f"vision_init={output / VISION}", f"vocabulary={VOCABULARY}"]
    if quick:
        words += [f"max_steps={stage.quick}", "warmup_steps=50"]
    return read_recipe(RECIPES / f"{stage.recipe}.yaml", words)[0]


def stage_data(stage: Stage, recipe: Recipe) -> SceneSource:
    """As many fresh samples as the recipe has steps for; no stage sees those of another."""
    assert recipe.max_steps is not None
    seed = 10 * recipe.seed + STAGES.index(stage)
    world = World(seed, size=recipe.image_size, twins=stage.twins, lead=stage.lead)
    return SceneSource(world, recipe.max_steps * recipe.batch_size * recipe.accumulate, stage.data)


def _told(tell: Callable[[str], None]) -> Callable[[int, float, Reading], None]:
    def report(step: int, loss: float, reading: Reading) -> None:
        cells = ", ".join(f"{name} {share:.3f}" for name, share in reading.cells.items())
        tell(
            f"step {step}  loss {loss:.3f}  {cells}, pairs {reading.pairs:.3f}, "
            f"places {reading.places:.3f}"
        )

    return report
