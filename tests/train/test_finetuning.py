"""Losses and gradients of captioning, VQA and NLVR2 against BLIP step by step, from samples on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import reference_med as med
import reference_training as reference
import torch
import training_cases as cases
from factories import random_med, tiny_vocabulary
from reference_med import State
from reference_training import Texts
from torch import Tensor

from blip_fast.data.samples import Sample
from blip_fast.med.blip import MED
from blip_fast.text import Tokenizer, pack
from blip_fast.train.captioning import Captioning
from blip_fast.train.nlvr import NLVR, exchange_sides
from blip_fast.train.objective import Example
from blip_fast.train.vqa import VQA

TOKENIZER = Tokenizer(tiny_vocabulary())


def examples(samples: Sequence[Sample]) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(samples[0].images), 3, 32, 32)
    return [
        Example(s, torch.randint(0, 256, shape, generator=generator).to(torch.uint8), seed)
        for seed, s in enumerate(samples)
    ]


def sample(text: str, images: int = 1, **more: object) -> Sample:
    return Sample(text, (Path("x.jpg"),) * images, text, image_id=text, **more)  # type: ignore


def tokens_of(texts: Sequence[str], first: str) -> Texts:
    """Word by word: every word of these texts is one token of the tiny vocabulary."""
    ids = [[TOKENIZER.id_of(w) for w in (first, *t.split(), "[SEP]")] for t in texts]
    return cases.padded(pack(ids))


def check(model: MED, state: State, found: Tensor, expected: Tensor) -> None:
    """The loss and every gradient."""
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    expected.backward()
    for name, gradient in cases.gradients(model).items():
        truth, weight = state[name].grad, state.get(name.replace(".bias", ".weight"))
        assert truth is not None, name
        scale = max(truth.abs().max().item(), 0 if weight is None else weight.grad.abs().max())
        error = (gradient - truth.reshape(gradient.shape)).abs().max().item()
        assert error <= 1e-5 * scale, f"{name}: {error:.2e} of {scale:.2e}"


def pixels(batch_images: Tensor) -> Tensor:
    return cases.normalised(batch_images).double()


def test_captioning_learns_what_follows_the_prompt() -> None:
    state, model = cases.build("caption")
    task = Captioning(model, TOKENIZER, prompt="a picture of ", max_length=12)
    captions = ["Two dogs, two cats!", "the red CAR (left) of the house in the street"]
    batch = task.collate(
        examples([sample(c.replace("dogs, two cats", "dog two cat")) for c in captions])
    )
    assert batch.text.lengths.tolist() == [9, 12]  # cut, [SEP] kept
    texts = tokens_of(
        ["a picture of two dog two cat", "a picture of the red car left of the house"], "[DEC]"
    )
    assert torch.equal(cases.padded(batch.text).ids, texts.ids)
    tokens = med.vit(state, pixels(batch.images))
    expected = reference.lm(state, tokens, texts, TOKENIZER.id_of("[DEC]"), 0.1, prompt_length=4)
    check(model, state, task(batch, 0.0)["lm"], expected)


def test_vqa_weighs_the_answers_of_each_question() -> None:
    state, model = cases.build("vqa")
    task = VQA(model, TOKENIZER)
    batch = task.collate(
        examples(
            [
                sample("What is on the table?", answers=("two cat", "dog"), weights=(0.7, 0.3)),
                sample("how many", answers=("four",), weights=(0.2,)),
            ]
        )
    )
    questions = tokens_of(["what is on the table ?", "how many"], "[ENC]")
    answers = tokens_of(["two cat", "dog", "four"], "[DEC]")
    assert torch.equal(cases.padded(batch.questions).ids, questions.ids)
    assert torch.equal(cases.padded(batch.answers).ids, answers.ids)
    expected = reference.vqa(
        state,
        med.vit(state, pixels(batch.images)),
        questions,
        answers,
        torch.tensor([0, 0, 1]),
        torch.tensor([0.7, 0.3, 0.2]),
        0.1,
    )
    check(model, state, task(batch, 0.0)["lm"], expected)


def test_nlvr_sees_both_pictures() -> None:
    state, model = cases.build("nlvr")
    task = NLVR(model, TOKENIZER)
    samples = [
        sample("The LEFT picture is red.", images=2, label=True),
        sample("the left picture is blue", images=2, label=False),
    ]
    made = examples(samples)
    batch = task.collate(made)  # the second example's seed is odd: turned
    texts = tokens_of(["the left picture is red", "the right picture is blue"], "[ENC]")
    assert torch.equal(cases.padded(batch.text).ids, texts.ids)
    left = torch.stack([made[0].pixels[0], made[1].pixels[1]])
    right = torch.stack([made[0].pixels[1], made[1].pixels[0]])
    logits = med.nlvr_logits(
        state,
        texts.ids,
        texts.mask,
        med.vit(state, pixels(left)),
        med.vit(state, pixels(right)),
    )
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]))
    check(model, state, task(batch, 0.0)["nlvr"], expected)


def test_sides_are_exchanged_in_words_only() -> None:
    assert exchange_sides("a bright left, rightmost") == "a bright right, leftmost"


def test_dropout_and_drop_path_work_in_training_alone() -> None:
    model = random_med("caption")
    model.regularise(dropout=0.5, drop_path=0.9)
    task = Captioning(model, TOKENIZER)
    batch = task.collate(examples([sample("a dog"), sample("a cat")]))
    evaluated = [task.eval()(batch, 0.0)["lm"].item() for _ in range(2)]
    trained = [task.train()(batch, 0.0)["lm"].item() for _ in range(4)]
    assert evaluated[0] == evaluated[1]
    assert len({*trained, evaluated[0]}) == 5
    rates = [block.drop_path.rate for block in model.vision.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.0, 0.9])


def test_drop_path_keeps_the_mean() -> None:
    from blip_fast.med.layers import DropPath

    path = DropPath()
    path.rate = 0.25
    dropped = path(torch.ones(40_000, 2, 3))
    kept = dropped[:, 0, 0] != 0
    assert torch.equal(dropped[kept], torch.full_like(dropped[kept], 1 / 0.75))
    assert abs(kept.float().mean().item() - 0.75) < 0.01
