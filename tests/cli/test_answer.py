from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import blip_fast
from blip_fast.images import ImageOptions, Status


class Answers:
    """Answers with the question, or with the last candidate; records how it was asked."""

    def __init__(self) -> None:
        self.image_options = ImageOptions(size=32)
        self.device = blip_fast.load("scenes", device="cpu").device
        self.settings: dict[str, Any] = {}

    def answer(
        self, images: Any, questions: list[str], candidates: list[str] | None, **settings: Any
    ) -> blip_fast.Captions:
        self.settings = settings
        assert len(questions) == len(images)
        rows = tuple(
            (blip_fast.Generated(candidates[-1] if candidates else q, -0.5, (1,), (-0.5,), False),)
            for q in questions
        )
        return blip_fast.Captions(rows, (Status.SUCCESS,) * len(rows), ("",) * len(rows))


@pytest.fixture
def answers(run: Any, monkeypatch: pytest.MonkeyPatch) -> Answers:
    model = Answers()
    monkeypatch.setattr(blip_fast, "load", lambda *_, **__: model)
    return model


def test_one_answer_for_each_picture(run: Any, pictures: Path, answers: Answers) -> None:
    code, out, err = run("answer", pictures, "--question", "what is it?", "--num-beams", 2)
    assert code == 0 and answers.settings["num_beams"] == 2
    assert out.splitlines() == [
        f"{pictures / 'a.png'}\twhat is it?",
        f"{pictures / 'sub/猫.jpg'}\twhat is it?",
    ]
    assert "2 of 3 pictures answered, 1 failed (failed_to_decode 1)" in err


def test_candidates_and_json(run: Any, pictures: Path, answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("yes\nno\n")
    flags = ("--question", "q", "--candidates", tmp_path / "c.txt", "--json")
    _, out, _ = run("answer", pictures / "a.png", *flags)
    assert json.loads(out) == {
        "path": str(pictures / "a.png"),
        "answer": "no",
        "log_probability": -0.5,
    }


def test_an_empty_answer_is_a_failure(run: Any, pictures: Path, answers: Answers) -> None:
    code, out, err = run("answer", pictures / "a.png", "--question", " ")
    assert code == 1 and out == "" and "empty_text" in err


def test_a_model_that_cannot_answer_says_so(run: Any, pictures: Path) -> None:
    code, _, err = run("answer", pictures / "a.png", "--question", "what?")
    assert code == 1 and err.startswith("blip-fast: error: ") and "'pretrain'" in err
