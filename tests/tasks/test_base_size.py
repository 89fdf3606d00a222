"""At the size people use: tokens of a random base model equal those of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import randomise

import blip_fast

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def base(shared_data: Path):
    """A random base-size captioner of transformers, and ours of the same weights."""
    text = {"num_attention_heads": 12}  # as on the hub; the class default is 8
    theirs = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text)
    ).eval()
    randomise(theirs.named_parameters(), seed=1)
    vocabulary = shared_data / "bert_vocab" / "vocab.txt"
    return theirs, blip_fast.from_transformers(theirs, vocabulary=vocabulary)


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_of_photos(base, photos: list[Path], beams: int) -> None:
    theirs, ours = base
    chosen = photos[:2]
    prompt = "a picture of "
    captions = ours.caption(chosen, prompt, num_beams=beams, max_length=14, min_length=8)
    pixels = [p.pixels for p in blip_fast.images.read_pictures(chosen, ours.image_options)]
    scale = torch.tensor(blip_fast.config.IMAGE_STD).view(3, 1, 1)
    shift = torch.tensor(blip_fast.config.IMAGE_MEAN).view(3, 1, 1)
    normalised = torch.stack([(p.float() / 255 - shift) / scale for p in pixels])
    (ids,) = ours.tokenizer.encode([prompt], "[CLS]", 20).tolist()
    expected = theirs.generate(
        normalised,
        torch.tensor([ids] * 2),
        num_beams=beams,
        max_length=14,
        min_length=8,
        do_sample=False,
    )
    for row, tokens in zip(captions, expected.tolist(), strict=True):
        body = tokens[4:]
        end = body.index(102) + 1 if 102 in body else len(body)
        assert list(row[0].token_ids) == tokens[: 4 + end]
