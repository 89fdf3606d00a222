"""What the tasks train on, one batch at a time: pictures as uint8, texts packed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from blip_fast.text import PackedText
from blip_fast.train.objective import Example

B = TypeVar("B", bound="_OnDevice")


@dataclass(frozen=True)
class _OnDevice:
    def to(self: B, device: torch.device) -> B:
        """The same batch with all its tensors on a device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
            elif isinstance(value, PackedText):
                moved[field.name] = value.to(device)
        return replace(self, **moved)


@dataclass(frozen=True)
class PairBatch(_OnDevice):
    """B images, each with a text.

    Attributes:
        keys: of the samples.
        images: uint8 [B, 3, S, S].
        text: B texts; the task sets their first tokens.
        ids: [B] int64; images of one id are one image.
        places: [P] int64, where in `text.ids` the tokens lie that the LM loss counts.
    """

    keys: Sequence[str]
    images: Tensor
    text: PackedText
    ids: Tensor
    places: Tensor


@dataclass(frozen=True)
class QuestionBatch(_OnDevice):
    """B images, each with a question, and A answers in all.

    Attributes:
        questions: B texts beginning with [ENC].
        answers: A texts beginning with [DEC].
        question_of: [A] int64, the question that each answers.
        weights: [A] float32, how much each answer counts.
        places: [P] int64, the answers' tokens to be predicted.
        answer_of: [P] int64, the answer that each of them belongs to.
    """

    keys: Sequence[str]
    images: Tensor
    questions: PackedText
    answers: PackedText
    question_of: Tensor
    weights: Tensor
    places: Tensor
    answer_of: Tensor


@dataclass(frozen=True)
class ComparisonBatch(_OnDevice):
    """B sentences, each about two images.

    Attributes:
        images: uint8 [2B, 3, S, S]: all left images, then all right ones.
        text: B texts beginning with [ENC].
        labels: [B] int64: 1 where the sentence is true.
    """

    keys: Sequence[str]
    images: Tensor
    text: PackedText
    labels: Tensor


def stack_images(examples: Sequence[Example]) -> Tensor:
    """uint8 [B * n, 3, S, S]: all first images, then all second ones."""
    return torch.stack([example.pixels for example in examples], dim=1).flatten(0, 1)


def keys_of(examples: Sequence[Example]) -> list[str]:
    return [example.sample.key for example in examples]


def ids_of(examples: Sequence[Example]) -> Tensor:
    """[B] int64 numbers for image ids: 63 bits of their BLAKE2b, the same in every process."""
    return torch.tensor([_number(example.sample.image_id) for example in examples])


def predicted(text: PackedText, first: int = 1) -> Tensor:
    """Where in `text.ids` the tokens lie that come `first` or later in their texts; on the host,
    before a batch moves, so that no device is waited for."""
    return (text.positions >= first).nonzero()[:, 0]


def _number(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big") >> 1
