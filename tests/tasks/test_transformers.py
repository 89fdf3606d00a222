"""Outputs equal those of transformers with the same random weights, in fp32.

Where transformers mixes the items of a batch (unequal prompts, masks that are ignored), it is run
on one item at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import VOCAB_SIZE, hf_tiny, tiny_vocabulary
from torch import Tensor

import blip_fast
from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.text import pack

pytest.importorskip("transformers", reason="transformers is not installed")

CLS, SEP, DEC, ENC = 101, 102, VOCAB_SIZE - 2, VOCAB_SIZE - 1
CAPTIONER = "BlipForConditionalGeneration"
MATCHER = "BlipForImageTextRetrieval"
ANSWERER = "BlipForQuestionAnswering"
TEXTS = ["a red ball", "the dog", "two cats on a blue table with a small box", ""]


def both(
    class_name: str, folder: Path, seed: int = 0, compat: str = "paper"
) -> tuple[Any, blip_fast.Blip]:
    """A random transformers model, and ours loaded from the files it writes."""
    theirs = hf_tiny(class_name, seed)
    theirs.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tiny_vocabulary()) + "\n")
    ours = blip_fast.load(folder, dtype="float32", device="cpu", compat=compat)
    return theirs, ours


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """At most `tolerance` of the largest value apart."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2g}"


def cut(tokens: list[int], prompt_length: int) -> list[int]:
    """Tokens up to the first [SEP] after the prompt; transformers fills up behind it."""
    body = tokens[prompt_length:]
    return tokens[:prompt_length] + (body[: body.index(SEP) + 1] if SEP in body else body)


def one_text(ours: blip_fast.Blip, text: str, first: int) -> Tensor:
    (ids,) = ours.tokenizer.encode([text], "[CLS]", 64).tolist()
    return torch.tensor([[first, *ids[1:]]])


@pytest.mark.parametrize("size", [32, 48])
def test_image_tokens(tmp_path: Path, size: int) -> None:
    theirs, ours = both(CAPTIONER, tmp_path)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs.vision_model(images, interpolate_pos_encoding=True).last_hidden_state
        assert_relative(ours.med.vision(images), expected)


@pytest.mark.parametrize(("compat", "first"), [("paper", ENC), ("transformers", CLS)])
def test_itm_logits(tmp_path: Path, compat: str, first: int) -> None:
    theirs, ours = both(MATCHER, tmp_path, compat=compat)
    images = torch.randn(3, 3, 32, 32)
    expected = torch.stack(
        [
            torch.cat([theirs(one_text(ours, t, first), image[None]).itm_score for t in TEXTS])
            for image in images
        ]
    )
    assert_relative(ours.match(images, TEXTS, score="logit"), expected[:, :, 1])
    assert_relative(ours.match(images, TEXTS), expected.softmax(2)[:, :, 1])


def test_itc_features_and_similarity(tmp_path: Path) -> None:
    theirs, ours = both(MATCHER, tmp_path)
    images = torch.randn(3, 3, 32, 32)
    expected = torch.cat(
        [
            theirs(one_text(ours, t, CLS), images, use_itm_head=False).itm_score.view(-1, 1)
            for t in TEXTS
        ],
        dim=1,
    )
    assert_relative(ours.similarity(images, TEXTS), expected)
    assert_relative(ours.similarity(ours.see(images), TEXTS), expected)
    features = torch.nn.functional.normalize(
        theirs.vision_proj(theirs.vision_model(images).last_hidden_state[:, 0]), dim=-1
    )
    assert_relative(ours.embed_images(images), features)


def test_lm_logits(tmp_path: Path) -> None:
    theirs, ours = both(CAPTIONER, tmp_path)
    images = torch.randn(3, 3, 32, 32)
    sequences = [[DEC, 7, 8, 9, SEP], [DEC, 30, SEP], [DEC, 5, 6, 7, 8, 9, 10, 11]]
    text = pack(sequences)
    memory = ours.see(images)
    losses = ours.med.losses(text, memory, torch.arange(3)).split(text.lengths.tolist())
    for image, ids, loss in zip(images, sequences, losses, strict=True):
        tokens = torch.tensor([ids])
        logits = theirs(image[None], tokens).logits[0]
        expected = -logits.log_softmax(1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
        assert loss[0] == 0
        assert_relative(loss[1:], expected)


# 32 cases: 16 models with a prompt of another length each, 2 images.
@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_are_identical(tmp_path: Path, beams: int) -> None:
    options = SearchOptions(num_beams=beams, max_length=14, min_length=6)
    ended, different = 0, set()
    for seed in range(16):
        theirs, ours = both(CAPTIONER, tmp_path / str(seed), seed)
        with torch.no_grad():  # so that some captions end by themselves
            theirs.text_decoder.cls.predictions.bias[SEP] += 1.5
            ours.med.lm_head.bias[SEP] += 1.5
        images = torch.randn(2, 3, 32, 32)
        prompts = [[DEC, *range(5, 5 + (seed + i) % 4)] for i in range(2)]
        written = generate(ours.med, ours.see(images), torch.arange(2), pack(prompts), options)
        for image, prompt, (best, *_) in zip(images, prompts, written, strict=True):
            expected = theirs.generate(
                image[None],
                torch.tensor([[CLS, *prompt[1:], SEP]]),
                num_beams=beams,
                max_length=14,
                min_length=6,
                do_sample=False,
            )
            tokens = cut(expected[0].tolist(), len(prompt))
            assert best.token_ids == tokens, f"model {seed}"
            ended += tokens[-1] == SEP
            different.add(tuple(tokens))
    assert len(different) > 24 and 3 <= ended <= 29, (len(different), ended)


def test_log_probabilities_are_those_of_the_model(tmp_path: Path) -> None:
    theirs, ours = both(CAPTIONER, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    captions = ours.caption(
        images, prompt="the red", num_beams=3, num_captions=3, max_length=12, min_length=4
    )
    for image, row in zip(images, captions, strict=True):
        assert len({c.token_ids for c in row}) == 3
        for caption in row:
            tokens = torch.tensor([caption.token_ids])
            logs = theirs(image[None], tokens).logits[0].log_softmax(1)
            expected = logs[:-1].gather(1, tokens[0, 1:, None])[2:, 0]
            assert caption.log_probability == pytest.approx(expected.sum().item(), rel=1e-4)
            torch.testing.assert_close(
                torch.tensor(caption.token_log_probabilities), expected, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize(("compat", "first"), [("paper", ENC), ("transformers", CLS)])
def test_written_answers(tmp_path: Path, compat: str, first: int) -> None:
    theirs, ours = both(ANSWERER, tmp_path, compat=compat)
    images = torch.randn(4, 3, 32, 32)
    questions = ["what is red", "how many", "who is on the left of the big tree", "what"]
    answers = ours.answer(images, questions, num_beams=3, max_length=8)
    for image, question, (best,) in zip(images, questions, answers, strict=True):
        expected = theirs.generate(
            one_text(ours, question, first),
            image[None],
            num_beams=3,
            max_length=8,
            min_length=1,
            do_sample=False,
        )
        assert list(best.token_ids) == cut(expected[0].tolist(), 1)


def test_vqa_logits(tmp_path: Path) -> None:
    theirs, ours = both(ANSWERER, tmp_path)
    images, questions = torch.randn(2, 3, 32, 32), ["what is red", "how many"]
    asked = ours.tokenizer.encode(questions, "[ENC]", 64)
    memory = ours.med.ask(asked, ours.see(images), torch.arange(2))
    answer = [DEC, 9, 10, SEP]
    losses = ours.med.losses(pack([answer, answer]), memory, torch.arange(2)).view(2, -1)
    for n, image in enumerate(images):
        tokens = theirs.vision_model(image[None]).last_hidden_state
        states = theirs.text_encoder(
            one_text(ours, questions[n], ENC), encoder_hidden_states=tokens
        ).last_hidden_state
        logits = theirs.text_decoder(torch.tensor([answer]), encoder_hidden_states=states).logits[0]
        expected = -logits.log_softmax(1)[:-1].gather(1, torch.tensor(answer)[1:, None])[:, 0]
        assert_relative(losses[n, 1:], expected)


def test_from_a_live_model(tmp_path: Path) -> None:
    theirs, ours = both(CAPTIONER, tmp_path)
    live = blip_fast.from_transformers(theirs, vocabulary=tmp_path / "vocab.txt")
    images = torch.randn(2, 3, 32, 32)
    settings = {"max_length": 12, "min_length": 4}
    assert live.caption(images, **settings) == ours.caption(images, **settings)
    shared = theirs.vision_model.encoder.layers[0].mlp.fc1.weight
    assert live.med.vision.blocks[0].fc1.weight.data_ptr() == shared.data_ptr()
