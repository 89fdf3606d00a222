"""A MED built from a Salesforce file computes what BLIP computes: against the padded oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference_med as oracle
import torch
from factories import tiny_config
from salesforce import State, random_salesforce
from torch import Tensor

from blip_fast.config import Kind
from blip_fast.med.blip import MED
from blip_fast.med.context import PackedMemory, PackedPast
from blip_fast.med.weights import build, read_checkpoint
from blip_fast.text import PackedText, pack

TRAINING_SIZE, OTHER_SIZE = 32, 48
LENGTHS = (3, 9, 1, 6)  # ragged, and a text of one token alone
IMAGES = (1, 0, 1, 2)  # the image of each text


def load(kind: Kind, folder: Path) -> tuple[State, MED]:
    state = random_salesforce(kind, seed=3)
    path = folder / f"{kind}.pth"
    torch.save({"model": state}, path)
    model = build(read_checkpoint(path), dtype=torch.float32, device="cpu")
    return state, model


def texts(kind: Kind, first: str, lengths: tuple[int, ...] = LENGTHS) -> PackedText:
    start = getattr(tiny_config(kind).text, f"{first}_id")
    generator = torch.Generator().manual_seed(len(first) + sum(lengths))
    return pack(
        [[start, *torch.randint(1, 100, (n - 1,), generator=generator).tolist()] for n in lengths]
    )


def padded(text: PackedText) -> tuple[Tensor, Tensor]:
    rows = [torch.tensor(row) for row in text.tolist()]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < text.lengths[:, None]
    return ids, mask.long()


def unpadded(values: Tensor, mask: Tensor) -> Tensor:
    """[B, L, ...] -> [T, ...]."""
    return values[mask.bool()]


def pixels(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(size))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the largest value; and the values differ among themselves."""
    assert found.shape == expected.shape
    assert expected.std() > 1e-3
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, f"relative error {error:.2e}"


both_sizes = pytest.mark.parametrize("size", [TRAINING_SIZE, OTHER_SIZE])


@both_sizes
def test_image_tokens(tmp_path: Path, size: int) -> None:
    state, model = load("caption", tmp_path)
    assert_same(model.vision(pixels(size)), oracle.vit(state, pixels(size)))


@both_sizes
@pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
def test_itc_features_and_itm_logits(tmp_path: Path, kind: Kind, size: int) -> None:
    state, model = load(kind, tmp_path)
    tokens, memory = oracle.vit(state, pixels(size)), model.see(pixels(size))
    assert memory.feature is not None
    assert_same(memory.feature, oracle.image_feature(state, tokens))
    alone = texts(kind, "cls")
    assert_same(model.text_feature(alone), oracle.text_feature(state, *padded(alone)))
    text, index = texts(kind, "enc"), torch.tensor(IMAGES)
    expected = oracle.itm_logits(state, *padded(text), tokens[index])
    assert_same(model.match_logits(text, memory, index), expected)


@both_sizes
@pytest.mark.parametrize("kind", ["pretrain", "caption"])
def test_lm_logits_and_losses(tmp_path: Path, kind: Kind, size: int) -> None:
    state, model = load(kind, tmp_path)
    tokens, memory = oracle.vit(state, pixels(size)), model.see(pixels(size))
    text, index = texts(kind, "dec"), torch.tensor(IMAGES)
    ids, mask = padded(text)
    expected = oracle.lm_logits(state, ids, mask, tokens[index])
    grounding = PackedMemory(memory.pairs, index, text.offsets)
    past = PackedPast(text, causal=True)
    states = model.write(text.ids, text.positions, past, grounding)
    assert_same(model.next_logits(states), unpadded(expected, mask))
    for smoothing in (0.0, 0.1):
        losses = oracle.lm_losses(expected, ids, mask, smoothing)
        assert_same(model.losses(text, memory, index, smoothing), unpadded(losses, mask))


@both_sizes
def test_answers_to_questions(tmp_path: Path, size: int) -> None:
    state, model = load("vqa", tmp_path)
    tokens, memory = oracle.vit(state, pixels(size)), model.see(pixels(size))
    index = torch.tensor(IMAGES)
    questions, answers = texts("vqa", "enc"), texts("vqa", "dec", (2, 4, 5, 1))
    asked = model.ask(questions, memory, index)
    of = torch.tensor([2, 0, 1, 3])  # the question of each answer
    ids, mask = padded(questions)
    expected = oracle.answer_logits(state, (ids[of], mask[of]), tokens[index[of]], padded(answers))
    grounding = PackedMemory(asked.pairs, of, answers.offsets, asked.key_lengths)
    past = PackedPast(answers, causal=True)
    states = model.write(answers.ids, answers.positions, past, grounding)
    answer_ids, answer_mask = padded(answers)
    assert_same(model.next_logits(states), unpadded(expected, answer_mask))
    losses = oracle.lm_losses(expected, answer_ids, answer_mask, 0.1)
    assert_same(model.losses(answers, asked, of, 0.1), unpadded(losses, answer_mask))


@both_sizes
def test_nlvr_logits(tmp_path: Path, size: int) -> None:
    state, model = load("nlvr", tmp_path)
    tokens, memory = oracle.vit(state, pixels(size)), model.see(pixels(size))
    text, sides = texts("nlvr", "enc"), torch.tensor([IMAGES, (0, 2, 1, 1)])
    expected = oracle.nlvr_logits(state, *padded(text), tokens[sides[0]], tokens[sides[1]])
    assert_same(model.compare_logits(text, memory, sides), expected)
    swapped = model.compare_logits(text, memory, sides.flip(0))
    assert (swapped - expected)[:2].abs().max() > 1e-3, "left and right are the same"
