"""The card of models whose worth is known: one that knows the truth, and one that guesses."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from blip_fast.cli import main
from blip_fast.config import BlipConfig
from blip_fast.scenes.claims import is_true
from blip_fast.scenes.language import SPOILED, claim_of, speak
from blip_fast.scenes.parse import parse
from blip_fast.scenes.questions import KINDS, ask
from blip_fast.scenes.render import render
from blip_fast.scenes.score import Card, held_out_scenes, score
from blip_fast.scenes.table import table
from blip_fast.scenes.world import HELD_OUT, Scene

SIZE, AMONG = 32, 36


def knows(text: str, scene: Scene) -> bool:
    claim = parse(text)
    return claim is not None and is_true(claim, scene)


class Oracle:
    """Answers for a model from the truth; `wrong` is how it fails.

    It knows a picture by its bytes, so it sees only what a model would see.
    """

    source, sha256, dtype, image_size = "oracle", "", torch.float32, SIZE
    config = BlipConfig()

    def __init__(self, wrong: str = "", seed: int = 0) -> None:
        scenes: list[Scene] = []
        for things in ("1-3", "4"):
            scenes += held_out_scenes("seen", things, AMONG, seed)
            scenes += held_out_scenes("unseen", things, AMONG, seed)
        self.known = {render(scene, SIZE).tobytes(): scene for scene in scenes}
        self.wrong = wrong

    def see(self, images: Sequence[np.ndarray], batch_size: int) -> list[Scene]:
        return [self.known[image.tobytes()] for image in images]

    def caption(self, memory: list[Scene], prompt: str, **_: Any) -> Any:
        rngs = [random.Random(n) for n in range(len(memory))]
        captions = [speak(claim_of(s, r), r) for s, r in zip(memory, rngs, strict=True)]
        if self.wrong == "caption":
            captions = [f"five {c.split()[-1]}s" if n % 2 else c for n, c in enumerate(captions)]
        return SimpleNamespace(texts=captions)

    def match(self, memory: list[Scene], texts: list[str], pairs: Any, score: str, **_: Any) -> Any:
        margin = torch.tensor([float(knows(texts[j], memory[i])) for i, j in pairs])
        if self.wrong == "match":
            margin = torch.zeros(len(pairs))
        return margin if score == "logit" else torch.stack([-margin, margin], 1)

    def similarity(self, memory: list[Scene], texts: list[str]) -> torch.Tensor:
        if self.wrong == "similarity":
            return torch.zeros(len(memory), len(texts))
        return torch.tensor([[float(knows(t, s)) for t in texts] for s in memory])


@pytest.fixture(scope="module")
def card() -> Card:
    return score(Oracle(), scenes=AMONG, among=AMONG)  # type: ignore[arg-type]


def test_the_truth_scores_full_marks(card: Card) -> None:
    assert [(g.split, g.things) for g in card.groups] == [
        ("seen", "1-3"),
        ("seen", "4"),
        ("unseen", "1-3"),
        ("unseen", "4"),
    ]
    for group in card.groups:
        assert group.captions is not None and group.captions.value == 1.0
        assert all(share.value == 1.0 for share in group.attributes.values())
        assert {"shape", "colour", "size", "texture", "count", "relation"} <= set(group.attributes)
        assert group.itm_easy == group.itm_hard == 1.0
        assert group.itm_kinds == dict.fromkeys(SPOILED, 1.0)
        assert group.itc_recall == group.itm_recall == (1.0, 1.0)
        assert group.scenes == AMONG and not group.answers
    assert len(card.summary()) == 5 and set(card.summary().values()) == {100.0}  # no VQA model


@pytest.mark.parametrize("wrong", ["caption", "match", "similarity"])
def test_every_fault_shows_in_its_own_row(card: Card, wrong: str) -> None:
    other = score(Oracle(wrong), scenes=AMONG, among=AMONG)  # type: ignore[arg-type]
    for good, bad in zip(card.groups, other.groups, strict=True):
        changed = {k for k in vars(good) if getattr(good, k) != getattr(bad, k)}
        assert (
            changed
            <= {
                "caption": {"captions", "understood", "attributes"},
                "match": {"itm_easy", "itm_hard", "itm_kinds"},
                "similarity": {"itc_recall", "itm_recall"},
            }[wrong]
        )
        if wrong == "caption":
            assert bad.captions is not None and 0.4 < bad.captions.value < 0.6
        if wrong == "match":
            assert bad.itm_easy == bad.itm_hard == 0.5
        if wrong == "similarity":
            assert bad.itc_recall is not None and max(bad.itc_recall) < 0.2


def test_groups_are_what_they_are_called() -> None:
    for split in ("seen", "unseen"):
        for things in ("1-3", "4"):
            scenes = held_out_scenes(split, things, 90, 0)  # type: ignore[arg-type]
            pairs = {(t.colour, t.shape) for scene in scenes for t in scene.things}
            assert pairs <= HELD_OUT if split == "unseen" else not pairs & HELD_OUT
            numbers = [len(scene.things) for scene in scenes]
            assert set(numbers) == ({4} if things == "4" else {1, 2, 3})
            assert things == "4" or numbers.count(2) == 30


def test_the_table_has_all_rows(card: Card) -> None:
    text = table(card)
    assert "oracle in float32; 36 scenes a column, seed 0" in text
    lines = text.splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    assert "VQA" not in "".join(lines[2:])  # nobody was asked
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[2:]}
    assert rows["captions true"] == "100.0" and rows["R@1, ITC"] == "100.0 / 100.0"
    assert rows["ITM AUC, one attribute"] == rows["relation"] == "1.000"


def test_an_answerer_is_judged_by_type() -> None:
    class Answerer(Oracle):
        config = dataclasses.replace(BlipConfig(), kind="vqa")

        def answer(self, memory: list[Scene], questions: list[str], **_: Any) -> Any:
            """Knows how many, and says yes to all else."""
            texts = []
            for scene, question in zip(memory, questions, strict=True):
                known = {
                    q.text: q.answer for q in (ask(scene, random.Random(n)) for n in range(80))
                }
                many = question.startswith("how many")
                texts.append(known.get(question, "0") if many else "yes")
            return SimpleNamespace(texts=texts)

    card = score(Answerer(), scenes=AMONG, among=AMONG)  # type: ignore[arg-type]
    for group in card.groups:
        assert list(group.answers) == list(KINDS)
        assert group.captions is None and group.itm_easy is None
        assert group.answers["where"].accuracy == group.answers["colour"].accuracy == 0.0
        assert abs(group.answers["exists"].accuracy - 0.5) < 0.25
        assert group.answers["count"].accuracy > 0.8 > group.answers["count"].majority
        assert group.answers["count"].number == AMONG
    assert "VQA where (majority)" in table(card)


def test_too_few_scenes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenes", "score", "scenes", "--scenes", "12", "--device", "cpu"]) == 1
    assert "R@1 is to be taken among 256 of 12 scenes" in capsys.readouterr().err
