"""Training examples as their sources give them, found by number so that any order can be repeated.

A source is cut into shards of known length. Nothing is read when a source is opened but what it
takes to count; a sample's bytes are read when its number is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blip_fast.images import Status


class BadSample(ValueError):
    """One sample cannot be read; the reason is its message. Its neighbours can.

    Attributes:
        status: the word under which it is counted.
    """

    def __init__(self, message: str, status: Status = Status.FAILED_TO_READ) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Sample:
    """One training example, its pictures not decoded and its text not cleaned.

    Attributes:
        key: names the sample in messages; unique within its source.
        images: paths, URLs or encoded bytes; one, or two for NLVR2, left and right.
        text: the caption, question or sentence.
        image_id: pictures of one id are the same picture: captions of one are positives of the
            other in retrieval.
        answers: VQA: the answers people gave, each once.
        weights: VQA: how much each of them counts.
        label: NLVR2: whether the sentence is true of the two pictures.
    """

    key: str
    images: tuple[Path | str | bytes, ...]
    text: str
    image_id: str
    answers: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    label: bool | None = None


def check_text(text: str, where: str) -> str:
    """A text that UTF-8 can hold: half a surrogate pair, which JSON may hold, becomes `?`.

    Raises:
        BadSample: `empty_text`, where there is nothing but white space.
    """
    if not text.strip():
        raise BadSample(f"{where}: the text is empty", Status.EMPTY_TEXT)
    return text.encode("utf-8", "replace").decode("utf-8")


class Shard(Protocol):
    """A part of a source, open for reading; safe to read from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Sample:
        """Raises a BadSample where this one cannot be read."""


class Source(Protocol):
    """Samples in shards; `counts` are the samples of each."""

    @property
    def name(self) -> str: ...

    @property
    def counts(self) -> Sequence[int]: ...

    def open(self, shard: int) -> Shard: ...
