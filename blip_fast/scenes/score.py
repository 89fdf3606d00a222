"""The model card of the small world: everything BLIP does, judged by exact truth.

Held-out scenes of one to three things, and of four; of pairs of colour and shape that training
has, and of those it never has. The same model and seed give the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from blip_fast.data import stable_seed
from blip_fast.med.memory import ImageMemory
from blip_fast.scenes.claims import KINDS as CLAIMS
from blip_fast.scenes.claims import Claim, is_true
from blip_fast.scenes.language import SPOILED, claim_of, speak, spoil
from blip_fast.scenes.measures import accuracy, auc, majority, recall_at_1
from blip_fast.scenes.parse import judge
from blip_fast.scenes.questions import KINDS, ask
from blip_fast.scenes.render import render_many
from blip_fast.scenes.world import SPLITS, Scene, Split, sample_scene, scene_seed
from blip_fast.tasks.model import DEFAULT_PROMPT, Blip

RERANKED = 16  # candidates of retrieval that ITM ranks again after ITC, in either direction

_BATCH = 64
_TRIES = 30


@dataclass(frozen=True)
class Share:
    """`right` of `number`."""

    right: int
    number: int

    @property
    def value(self) -> float:
        return self.right / self.number if self.number else float("nan")


@dataclass(frozen=True)
class Answered:
    """VQA accuracy of one type, and what its commonest answer would give."""

    accuracy: float
    majority: float
    number: int


@dataclass(frozen=True)
class Group:
    """One column of the table; what the model cannot do is None or empty.

    Attributes:
        captions: greedy captions that are true; `understood` those that say anything of a scene.
        attributes: claims in captions that are right, by kind.
        itm_easy: AUC of true captions against captions of another picture, false of this one.
        itm_hard: AUC of true captions against the same ones with one attribute wrong, all kinds
            together; `itm_kinds` for each kind alone.
        itc_recall, itm_recall: R@1, text to image and image to text: by ITC alone, and
            with the 16 best of ITC ranked by ITM logit plus cosine. A pair counts as right where
            the caption is true of the picture.
        answers: by type of question; written greedily.
    """

    split: Split
    things: str
    scenes: int
    captions: Share | None = None
    understood: Share | None = None
    attributes: dict[str, Share] = field(default_factory=dict)
    itm_easy: float | None = None
    itm_hard: float | None = None
    itm_kinds: dict[str, float] = field(default_factory=dict)
    itc_recall: tuple[float, float] | None = None
    itm_recall: tuple[float, float] | None = None
    answers: dict[str, Answered] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """All groups of a model, and what it takes to repeat them."""

    model: str
    sha256: str
    dtype: str
    seed: int
    among: int
    prompt: str
    groups: tuple[Group, ...]

    def group(self, split: Split, things: str) -> Group:
        """One of the groups; `things` is "1-3" or "4"."""
        return next(g for g in self.groups if (g.split, g.things) == (split, things))

    def summary(self) -> dict[str, float]:
        """Each metric in per cent, the mean of all groups: what a faster model is compared by."""
        metrics: dict[str, Callable[[Group], float]] = {
            "captions true": lambda g: g.captions.value if g.captions else math.nan,
            "ITM AUC, other picture": lambda g: g.itm_easy if g.itm_easy is not None else math.nan,
            "ITM AUC, one attribute": lambda g: g.itm_hard if g.itm_hard is not None else math.nan,
            "R@1, ITC": lambda g: _mean(g.itc_recall or ()),
            "R@1, ITM": lambda g: _mean(g.itm_recall or ()),
            "VQA": lambda g: _mean([a.accuracy for a in g.answers.values()]),
        }
        found = {name: 100 * _mean(list(map(of, self.groups))) for name, of in metrics.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def score(
    model: Blip,
    answerer: Blip | None = None,
    *,
    scenes: int = 512,
    seed: int = 0,
    among: int = 256,
    prompt: str = DEFAULT_PROMPT,
) -> Card:
    """Judge a model.

    Args:
        answerer: a VQA model of the same picture size, judged in the same card.
        scenes: in each of the four groups.
        among: the first so many of them are retrieved among one another.
        prompt: what captions go on from.

    Raises:
        ValueError: where `among` is not between 16 and `scenes`.
    """
    if not RERANKED <= among <= scenes:
        raise ValueError(
            f"R@1 is to be taken among {among} of {scenes} scenes; give at least as many scenes, "
            f"and {RERANKED} for both at least"
        )
    groups = []
    for split in SPLITS[1:]:
        for things in ("1-3", "4"):
            shown = held_out_scenes(split, things, scenes, seed)
            group = Group(split, things, len(shown))
            rng = random.Random(stable_seed(f"score/{split}/{things}", seed))
            groups.append(_judge(group, model, answerer, shown, among, prompt, rng))
    dtype = str(model.dtype).removeprefix("torch.")
    return Card(model.source, model.sha256, dtype, seed, among, prompt, tuple(groups))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def held_out_scenes(split: Split, things: str, number: int, seed: int) -> list[Scene]:
    """The scenes of a group: as many of each number of things."""
    numbers = [4] if things == "4" else [1, 2, 3]
    seeds = (scene_seed(split, n, stable_seed(f"score/{things}", seed)) for n in range(number))
    return [sample_scene(s, split, numbers[n % len(numbers)]) for n, s in enumerate(seeds)]


def _judge(
    group: Group,
    model: Blip,
    answerer: Blip | None,
    scenes: list[Scene],
    among: int,
    prompt: str,
    rng: random.Random,
) -> Group:
    memory = None
    if model.config.kind != "vqa":
        memory = model.see(list(render_many(scenes, model.image_size)), batch_size=_BATCH)
    if memory is not None and model.config.kind in ("caption", "pretrain"):
        group = _captions(group, model, memory, scenes, prompt)
    if memory is not None and model.config.has_matching:
        group = _matching(group, model, memory, scenes, rng)
        group = _retrieval(group, model, memory, scenes[:among], rng)
    if answerer is None and model.config.kind == "vqa":
        answerer = model
    if answerer is not None:
        group = dataclasses.replace(group, answers=_answers(answerer, scenes, rng))
    return group


def _captions(
    group: Group, model: Blip, memory: ImageMemory, scenes: Sequence[Scene], prompt: str
) -> Group:
    written = model.caption(
        memory, prompt, num_beams=1, max_length=40, min_length=1, batch_size=_BATCH
    )
    verdicts = [judge(text, scene) for text, scene in zip(written.texts, scenes, strict=True)]
    attributes = {}
    for kind in CLAIMS:
        right = sum(v.right.get(kind, 0) for v in verdicts)
        if stated := sum(v.stated.get(kind, 0) for v in verdicts):
            attributes[kind] = Share(right, stated)
    return dataclasses.replace(
        group,
        captions=Share(sum(v.true for v in verdicts), len(verdicts)),
        understood=Share(sum(v.understood for v in verdicts), len(verdicts)),
        attributes=attributes,
    )


def _matching(
    group: Group, model: Blip, memory: ImageMemory, scenes: Sequence[Scene], rng: random.Random
) -> Group:
    texts: list[str] = []
    pairs: list[tuple[int, int]] = []

    def add(image: int, claim: Claim, words: random.Random) -> None:
        pairs.append((image, len(texts)))
        texts.append(speak(claim, words))

    easy = list(_easy_pairs(scenes, rng))
    for image, true, false in easy:
        add(image, true, rng)
        add(image, false, rng)
    hard = {kind: list(_hard_pairs(scenes, kind, rng)) for kind in SPOILED}
    for triples in hard.values():
        for image, true, false in triples:
            wording = rng.getrandbits(60)  # the same words but the wrong one
            add(image, true, random.Random(wording))
            add(image, false, random.Random(wording))
    logits = model.match(memory, texts, pairs, score="logits", batch_size=_BATCH)
    margins = logits[:, 1] - logits[:, 0]  # as the probability orders them, but never 1 for many
    positives, negatives = margins[::2], margins[1::2]
    ends = torch.tensor([len(easy), *(len(t) for t in hard.values())]).cumsum(0).tolist()
    kinds = {
        kind: auc(positives[a:b], negatives[a:b])
        for kind, a, b in zip(hard, ends[:-1], ends[1:], strict=True)
        if b > a
    }
    return dataclasses.replace(
        group,
        itm_easy=auc(positives[: ends[0]], negatives[: ends[0]]),
        itm_hard=auc(positives[ends[0] :], negatives[ends[0] :]),
        itm_kinds=kinds,
    )


def _easy_pairs(scenes: Sequence[Scene], rng: random.Random) -> Iterator[tuple[int, Claim, Claim]]:
    """A scene, a claim true of it, and a claim true of another scene and false of this one."""
    for image, scene in enumerate(scenes):
        for _ in range(_TRIES):
            claim = claim_of(rng.choice(scenes), rng)
            if not is_true(claim, scene):
                yield image, claim_of(scene, rng), claim
                break


def _hard_pairs(
    scenes: Sequence[Scene], kind: str, rng: random.Random
) -> Iterator[tuple[int, Claim, Claim]]:
    """A scene, a claim true of it, and the same claim with one attribute of this kind wrong."""
    for image, scene in enumerate(scenes):
        for _ in range(_TRIES):
            claim = claim_of(scene, rng, focus=kind)
            wrong = spoil(claim, scene, kind, rng)
            if wrong is not None:
                yield image, claim, wrong
                break


def _retrieval(
    group: Group, model: Blip, memory: ImageMemory, scenes: Sequence[Scene], rng: random.Random
) -> Group:
    claims = [_telling(scene, scenes, rng) for scene in scenes]
    texts = [speak(claim, rng) for claim in claims]
    right = torch.tensor([[is_true(c, s) for s in scenes] for c in claims])
    # Every row is one text or one image; the pictures are the memory's first.
    by_itc = model.similarity(memory, texts)[: len(scenes)].T.contiguous()
    by_itm = []
    for scores, names_image in ((by_itc, False), (by_itc.T, True)):
        best = scores.topk(RERANKED, dim=1).indices
        rows = torch.arange(len(scores))[:, None].expand_as(best)
        images, words = (rows, best) if names_image else (best, rows)
        pairs = list(zip(images.flatten().tolist(), words.flatten().tolist(), strict=True))
        logits = model.match(memory, texts, pairs, score="logit", batch_size=_BATCH)
        ranked = torch.full_like(scores, float("-inf"))
        by_itm.append(ranked.scatter(1, best, logits.view_as(best) + scores.gather(1, best)))
    return dataclasses.replace(
        group,
        itc_recall=(recall_at_1(by_itc, right), recall_at_1(by_itc.T, right.T)),
        itm_recall=(recall_at_1(by_itm[0], right), recall_at_1(by_itm[1], right.T)),
    )


def _telling(scene: Scene, scenes: Sequence[Scene], rng: random.Random) -> Claim:
    """Of some claims true of a scene the first that is true of no other, or of the fewest."""
    fewest: tuple[int, Claim] | None = None
    for _ in range(_TRIES):
        claim = claim_of(scene, rng)
        true = sum(is_true(claim, other) for other in scenes)
        if fewest is None or true < fewest[0]:
            fewest = true, claim
        if true == 1:
            break
    assert fewest is not None
    return fewest[1]


def _answers(model: Blip, scenes: Sequence[Scene], rng: random.Random) -> dict[str, Answered]:
    memory = model.see(list(render_many(scenes, model.image_size)), batch_size=_BATCH)
    answers = {}
    for kind in KINDS:
        asked = [ask(scene, rng, kind) for scene in scenes]
        written = model.answer(
            memory, [q.text for q in asked], num_beams=1, batch_size=_BATCH
        ).texts
        # Where a scene has no question of this kind, another was asked; it does not count.
        pairs = [(w, q.answer) for w, q in zip(written, asked, strict=True) if q.kind == kind]
        given, wanted = [w for w, _ in pairs], [a for _, a in pairs]
        answers[kind] = Answered(accuracy(given, wanted), majority(wanted), len(wanted))
    return answers
