from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_all_pictures_with_all_texts(run: Any, pictures: Path, scenes: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a dog\n\nein Kätzchen 猫\n", encoding="utf-8")
    flags = ("--text", "a cat", "--texts", tmp_path / "texts.txt", "--json", "--batch-size", 2)
    code, out, err = run("match", pictures, *flags)
    first, failed, last = objects(out)
    assert code == 0 and failed["status"] == "failed_to_decode"
    assert "2 of 3 pictures matched" in err
    texts = ["a cat", "a dog", "ein Kätzchen 猫"]
    assert [m["text"] for m in last["matches"]] == texts
    good = [pictures / "a.png", pictures / "sub/猫.jpg"]
    for name, expected in (
        ("probability", scenes.match(good, texts)),
        ("similarity", scenes.similarity(good, texts)),
    ):
        found = torch.tensor([[m[name] for m in one["matches"]] for one in (first, last)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_picture_with_its_own_text(run: Any, pictures: Path, scenes: Any) -> None:
    (pictures / "sub/猫.txt").write_text("a cat", encoding="utf-8")
    (pictures / "broken.txt").write_text("a dog", encoding="utf-8")
    code, out, err = run("match", pictures)
    header, line = out.splitlines()
    probability, similarity, picture, text = line.split("\t")
    assert code == 0 and header.split("\t") == ["probability", "similarity", "picture", "text"]
    assert (picture, text) == (str(pictures / "sub/猫.jpg"), "a cat")
    assert float(probability) == pytest.approx(float(scenes.match(picture, "a cat")), abs=1e-3)
    assert "1 of 3 pictures matched" in err
    assert "empty_text 1" in err and "failed_to_decode 1" in err
    assert f"{pictures / 'a.png'}: empty_text: there is no text beside it" in err


def test_no_text_at_all(run: Any, pictures: Path, loads: list) -> None:
    code, _, err = run("match", pictures)
    assert code == 1 and loads == [] and "0 of 3 pictures matched" in err


def test_a_score_that_is_no_number_is_a_failure(
    run: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch, scenes: Any
) -> None:
    def match(_: Any, memory: Any, texts: Any, *__: Any, **___: Any) -> torch.Tensor:
        return torch.full((len(memory), len(texts)), torch.nan)

    monkeypatch.setattr(type(scenes), "match", match)
    code, out, _ = run("match", pictures / "a.png", "--text", "a cat", "--json")
    assert code == 1 and objects(out)[0]["status"] == "failed_score"


def test_an_empty_file_of_texts_is_refused(run: Any, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n")
    code, _, err = run("match", pictures, "--texts", tmp_path / "texts.txt")
    assert code == 1 and "texts.txt holds no text" in err
