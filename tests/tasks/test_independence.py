"""What an image gets does not depend on its batch: neighbours, order, size of the batch."""

from __future__ import annotations

import pytest
import torch
from factories import random_med, tiny_vocabulary

from blip_fast.images import ImageOptions
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer, pack

SETTINGS = {"max_length": 16, "min_length": 4}
SEARCHES = [
    {"num_beams": 1},
    {"num_beams": 3, "num_captions": 2},
    {"top_p": 0.9, "num_captions": 3},
]


def blip(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Blip:
    med = random_med(kind, seed).to(dtype)
    tokenizer = Tokenizer(tiny_vocabulary())
    return Blip(med, tokenizer, "random", "", True, ImageOptions(size=32))


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beams", "samples"])
def test_captions(search: dict[str, float]) -> None:
    model, images = blip("pretrain"), torch.randn(5, 3, 32, 32)
    prompts = ["the red", "", "a", "two small", "the"]
    together = model.caption(images, prompts, seed=range(5), **SETTINGS, **search)
    in_twos = model.caption(images, prompts, batch_size=2, **SETTINGS, **search)
    order = [3, 0, 4, 2, 1]
    turned = model.caption(
        images[order], [prompts[i] for i in order], seed=order, **SETTINGS, **search
    )
    for place, i in enumerate(order):
        (alone,) = model.caption(images[i : i + 1], prompts[i], seed=i, **SETTINGS, **search)
        for other in (together[i], in_twos[i], turned[place]):
            assert [c.token_ids for c in other] == [c.token_ids for c in alone]
            assert [c.log_probability for c in other] == pytest.approx(
                [c.log_probability for c in alone], abs=1e-4
            )


def test_samples_depend_on_the_seed() -> None:
    model, images = blip("caption"), torch.randn(2, 3, 32, 32)
    first = model.caption(images, "", top_p=0.9, seed=1, **SETTINGS)
    assert first == model.caption(images, "", top_p=0.9, seed=1, **SETTINGS)
    assert first != model.caption(images, "", top_p=0.9, seed=7, **SETTINGS)


def test_scores_in_fp32_and_by_the_rule_in_bf16() -> None:
    images, texts = torch.randn(4, 3, 32, 32), ["a red ball", "the dog", "two cats on a table"]
    truth = blip("retrieval").match(images, texts, score="logit")
    for dtype in (torch.float32, torch.bfloat16):
        model = blip("retrieval", dtype)
        together = model.match(images, texts, score="logit")
        alone = torch.cat(
            [
                torch.cat([model.match(image[None], text, score="logit") for text in texts], dim=1)
                for image in images
            ]
        )
        # Two runs in one dtype may each err as much as the dtype does; fp32 has 1e-5 of it.
        error = (together - truth).abs().max() if dtype == torch.bfloat16 else 1e-5
        floor = torch.finfo(dtype).eps * truth.abs().max()
        assert (together - alone).abs().max() <= 2 * error + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probability_of_a_caption_in_fp32_and_by_the_rule_in_bf16(dtype: torch.dtype) -> None:
    images = torch.randn(4, 3, 32, 32)
    text = pack([[126, 5, 9, 7, 102], [126, 6, 102], [126, *range(10, 24), 102], [126, 8, 8, 102]])

    def log_probabilities(model: Blip, rows: list[int]) -> torch.Tensor:
        part = pack([text.tolist()[i] for i in rows])
        memory = model.see(images[rows])
        losses = model.med.losses(part, memory, torch.arange(len(rows)))
        where = torch.arange(len(rows)).repeat_interleave(part.lengths)
        return -torch.zeros(len(rows)).index_add_(0, where, losses)

    truth = log_probabilities(blip("caption"), [0, 1, 2, 3])
    model = blip("caption", dtype)
    together = log_probabilities(model, [0, 1, 2, 3])
    alone = torch.cat([log_probabilities(model, [i]) for i in range(4)])
    error = (together - truth).abs().max() if dtype == torch.bfloat16 else 1e-4
    floor = torch.finfo(dtype).eps * truth.abs().max()
    assert (together - alone).abs().max() <= 2 * error + floor


def test_named_pairs_are_those_of_all_pairs() -> None:
    model, images = blip("retrieval"), torch.randn(5, 3, 32, 32)
    texts = ["a red ball", "the dog", "two cats"]
    everything = model.match(images, texts)
    pairs = [(4, 0), (0, 2), (4, 1), (2, 2), (0, 2)]
    named = model.match(images, texts, pairs, batch_size=2)
    torch.testing.assert_close(named, torch.stack([everything[i, t] for i, t in pairs]))


def test_similarity_and_answers() -> None:
    images, questions = torch.randn(3, 3, 32, 32), ["what is red", "how many", "who"]
    model = blip("retrieval")
    together = model.similarity(images, questions)
    for i in range(3):
        torch.testing.assert_close(model.similarity(images[i], questions)[0], together[i])
    model = blip("vqa")
    for settings in ({}, {"candidates": ["red", "two", "the dog", "a cat", "blue"], "k": 3}):
        answers = model.answer(images, questions, **settings)
        for i in range(3):
            alone = model.answer(images[i], questions[i], **settings)
            assert alone[0][0].token_ids == answers[i][0].token_ids
            assert alone[0][0].log_probability == pytest.approx(
                answers[i][0].log_probability, abs=1e-4
            )
