"""Every setting of beams and phrases gives the tokens that transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import VOCAB_SIZE, hf_tiny, tiny_vocabulary

import blip_fast
from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.text import pack

pytest.importorskip("transformers", reason="transformers is not installed")

CLS, SEP, DEC = 101, 102, VOCAB_SIZE - 2
PROMPTS = [[DEC], [DEC, 5, 6], [DEC, 7], [DEC, 5, 6, 8]]
LENGTHS = {"max_length": 14, "min_length": 4}


def tokens(folder: Path, seed: int, settings: dict[str, Any], theirs_too: dict[str, Any]):
    """Tokens of ours, then of theirs, each image of theirs alone."""
    theirs = hf_tiny("BlipForConditionalGeneration", seed)
    with torch.no_grad():
        theirs.text_decoder.cls.predictions.bias[SEP] += 2.0
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(tiny_vocabulary()) + "\n")
    ours = blip_fast.from_transformers(theirs, vocabulary=vocabulary).med
    images = torch.randn(len(PROMPTS), 3, 32, 32)
    options = SearchOptions(**LENGTHS, **settings)
    written = generate(ours, ours.see(images), torch.arange(4), pack(PROMPTS), options, slots=3)
    found, expected = [], []
    for image, prompt, (best, *_) in zip(images, PROMPTS, written, strict=True):
        (row,) = theirs.generate(
            image[None],
            torch.tensor([[CLS, *prompt[1:], SEP]]),
            do_sample=False,
            **LENGTHS,
            **theirs_too,
        ).tolist()
        body = row[len(prompt) :]
        end = body.index(SEP) + 1 if SEP in body else len(body)
        found.append(best.token_ids)
        expected.append([*prompt, *body[:end]])
    return found, expected


@pytest.mark.parametrize("length_penalty", [-1.0, 1.0, 2.0])
def test_early_stopping(tmp_path: Path, length_penalty: float) -> None:
    different = set()
    for early_stopping in (True, "never"):
        settings = {
            "num_beams": 3,
            "early_stopping": early_stopping,
            "length_penalty": length_penalty,
        }
        for seed in range(2):
            torch.manual_seed(seed)
            found, expected = tokens(tmp_path, seed, settings, settings)
            assert found == expected, (settings, seed)
            different.add((seed, str(found)))
    # The rules differ in what they find, or this would show nothing of them.
    assert length_penalty < 0 or len(different) > 2


@pytest.mark.parametrize("beams", [1, 3])
def test_forbidden_phrases(tmp_path: Path, beams: int) -> None:
    changed = 0
    for seed in range(2):
        torch.manual_seed(seed)
        plain, _ = tokens(tmp_path, seed, {"num_beams": beams}, {"num_beams": beams})
        bodies = [row[len(prompt) :] for row, prompt in zip(plain, PROMPTS, strict=True)]
        # A word of one text, a pair of the next, and a phrase that begins in a prompt.
        phrases = [bodies[0][:1], bodies[2][:2], [5, 6, bodies[1][0]], [6, 8, bodies[3][0]]]
        phrases = [phrase for phrase in phrases if SEP not in phrase]
        torch.manual_seed(seed)
        found, expected = tokens(
            tmp_path,
            seed,
            {"num_beams": beams, "forbidden": tuple(map(tuple, phrases))},
            {"num_beams": beams, "bad_words_ids": phrases},
        )
        assert found == expected, seed
        changed += found != plain
    assert changed == 2


def test_repetition_penalty(tmp_path: Path) -> None:
    for beams in (1, 3):
        settings = {"num_beams": beams, "repetition_penalty": 1.3}
        found, expected = tokens(tmp_path, 0, settings, settings)
        assert found == expected, settings
