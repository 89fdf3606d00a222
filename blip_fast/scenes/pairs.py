"""Pictures with their texts by number, in endless supply; also as a source that training reads.

As twins, pictures 2k and 2k + 1 differ in one attribute, and each caption is true of its own
picture alone. Side by side in a batch they make ITM's in-batch negatives hard in every attribute,
positions and relations too, with no change to the objective. With twins alone ITM sees no other
negatives in the end, and forgets them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from blip_fast.data import stable_seed
from blip_fast.data.samples import Sample
from blip_fast.scenes.language import caption, speak, telling_claim
from blip_fast.scenes.noise import WebText, web_text
from blip_fast.scenes.questions import ask
from blip_fast.scenes.render import render
from blip_fast.scenes.statements import state
from blip_fast.scenes.world import SPLITS, Scene, Split, sample_scene, scene_seed, twin

LEAD = "a picture of "


@dataclass(frozen=True)
class World:
    """Which pictures and texts there are.

    Attributes:
        seed: two worlds of one seed hold the same, of another seed nothing in common.
        split: see `sample_scene`.
        size: of pictures, in pixels.
        noise: share of texts that are noise.
        twins: share of such pairs of neighbours.
        lead: share of captions that begin with "a picture of", so that a model learns to write
            with BLIP's prompt and without.
    """

    seed: int
    split: Split = "train"
    size: int = 96
    noise: float = 0.0
    twins: float = 0.0
    lead: float = 0.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        if not 0 <= self.twins <= 1:
            raise ValueError(f"the share of twins is {self.twins}; it must be between 0 and 1")

    def scene(self, number: int) -> Scene:
        return self._pair(number)[0]

    def pair(self, number: int) -> tuple[Scene, WebText]:
        """A scene and the text beside it."""
        scene, text = self._pair(number)
        if self.rng("lead", number).random() < self.lead:
            text = LEAD + text
        seed = stable_seed(f"web/{self.split}/{number}", self.seed)
        return scene, web_text(scene, text, self.noise, self.split, seed)

    def rng(self, use: str, number: int) -> random.Random:
        """Chance that belongs to one use of one picture."""
        return random.Random(stable_seed(f"{use}/{self.split}/{number}", self.seed))

    def _pair(self, number: int) -> tuple[Scene, str]:
        first = number - number % 2
        if self.rng("kind", first).random() >= self.twins:
            scene = sample_scene(scene_seed(self.split, number, self.seed), self.split)
            return scene, caption(scene, self.rng("text", number))
        rng = self.rng("twins", first)
        for attempt in range(1000):
            seed = stable_seed(f"twins/{self.split}/{first}/{attempt}", self.seed)
            scenes = [sample_scene(seed, self.split)]
            other, kind = twin(scenes[0], rng, self.split)
            scenes.append(other)
            claims = [telling_claim(a, b, kind, rng) for a, b in (scenes, scenes[::-1])]
            mine = claims[number % 2]
            if mine is not None and None not in claims:
                return scenes[number % 2], speak(mine, self.rng("text", number))
        raise AssertionError("nearly all twins can be told apart")


def png(scene: Scene, size: int) -> bytes:
    """A scene as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(render(scene, size)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class SceneSource:
    """Training samples made when they are asked for; `task` is "caption", "vqa" or "nlvr".

    Raises:
        ValueError: where there is no such task.
    """

    def __init__(self, world: World, number: int, task: str = "caption", per_shard: int = 1000):
        if task not in _SAMPLES:
            raise ValueError(f"task is {task!r}; it must be one of {', '.join(_SAMPLES)}")
        self.world, self.number, self.task, self.per_shard = world, number, task, per_shard

    @property
    def name(self) -> str:
        return f"scenes/{self.world.split}/{self.world.seed}/{self.task}"

    @property
    def counts(self) -> Sequence[int]:
        full, rest = divmod(self.number, self.per_shard)
        return [self.per_shard] * full + ([rest] if rest else [])

    def open(self, shard: int) -> SceneShard:
        first = shard * self.per_shard
        return SceneShard(self, range(first, first + self.counts[shard]))


class SceneShard:
    """Neighbouring samples of a source; nothing is kept, so it is safe in any thread."""

    def __init__(self, source: SceneSource, numbers: range) -> None:
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Sample:
        return _SAMPLES[self.source.task](self.source.world, self.numbers[number])


def _captioned(world: World, number: int) -> Sample:
    scene, text = world.pair(number)
    key = _key(number)
    return Sample(key, (png(scene, world.size),), text.text, image_id=key)


def _asked(world: World, number: int) -> Sample:
    scene = world.scene(number)
    question = ask(scene, world.rng("question", number))
    return Sample(
        _key(number),
        (png(scene, world.size),),
        question.text,
        image_id=_key(number),
        answers=(question.answer,),
        weights=(1.0,),
    )


def _stated(world: World, number: int) -> Sample:
    scenes = world.scene(2 * number), world.scene(2 * number + 1)
    statement = state(*scenes, world.rng("statement", number))
    return Sample(
        _key(number),
        tuple(png(scene, world.size) for scene in scenes),
        statement.sentence,
        image_id=_key(number),
        label=statement.label,
    )


def _key(number: int) -> str:
    return f"{number:09d}"


_SAMPLES = {"caption": _captioned, "vqa": _asked, "nlvr": _stated}
