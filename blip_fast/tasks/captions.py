"""Generated texts with their log-probabilities: what captioning and answering give back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from blip_fast.decoding.repeats import is_degenerate
from blip_fast.decoding.search import Written
from blip_fast.images import Status
from blip_fast.text import Tokenizer


@dataclass(frozen=True)
class Generated:
    """One text.

    Attributes:
        text: without the prompt, unless it was to be kept.
        log_probability: natural logarithm of the model's probability of the text given image and
            prompt: the sum of `token_log_probabilities`. Penalties and temperature steer the
            choice of tokens but do not enter here.
        token_ids: [DEC] and the prompt first; [SEP] last where the text ended by itself.
        token_log_probabilities: one for each token after the prompt.
        truncated: whether the text was cut off by `max_length`.
        degenerate: whether it goes round in circles; see `blip_fast.decoding.repeats`.
    """

    text: str
    log_probability: float
    token_ids: tuple[int, ...]
    token_log_probabilities: tuple[float, ...]
    truncated: bool
    degenerate: bool = False

    @classmethod
    def from_written(cls, written: Written, tokenizer: Tokenizer, keep_prompt: bool) -> Generated:
        """What a search has written, as text."""
        ids = written.token_ids
        text, prompt = tokenizer.decode(ids), tokenizer.decode(ids[: written.prompt_length])
        if not keep_prompt and text.startswith(prompt):
            text = text[len(prompt) :].strip()
        return cls(
            text=text,
            log_probability=written.log_probability,
            token_ids=tuple(ids),
            token_log_probabilities=tuple(written.token_log_probabilities),
            truncated=ids[-1] != tokenizer.id_of("[SEP]"),
            degenerate=is_degenerate(ids[written.prompt_length :]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields that are written to JSON files."""
        return {
            "text": self.text,
            "log_probability": self.log_probability,
            "truncated": self.truncated,
            "degenerate": self.degenerate,
        }


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        texts: best first; none where there is a reason.
        status: `Status.SUCCESS` where there are texts.
        error: why there are none; empty where there are.
    """

    texts: tuple[Generated, ...]
    status: Status = Status.SUCCESS
    error: str = ""


@dataclass(frozen=True)
class Captions(Sequence[tuple[Generated, ...]]):
    """The texts of each image, best first; an image that could not be read has none.

    Attributes:
        rows: one tuple of texts an image.
        status: one an image; `Status.SUCCESS` where there are texts.
        errors: why there are none; empty where there are.
    """

    rows: tuple[tuple[Generated, ...], ...]
    status: tuple[Status, ...]
    errors: tuple[str, ...]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Captions:
        """The texts of images, from what became of each."""
        return cls(
            rows=tuple(outcome.texts for outcome in outcomes),
            status=tuple(outcome.status for outcome in outcomes),
            errors=tuple(outcome.error for outcome in outcomes),
        )

    @property
    def texts(self) -> list[str]:
        """The best text of each image, empty where there is none."""
        return [row[0].text if row else "" for row in self.rows]

    @property
    def log_probabilities(self) -> list[float]:
        """That of the best text of each image, minus infinity where there is none."""
        return [row[0].log_probability if row else float("-inf") for row in self.rows]

    @overload
    def __getitem__(self, place: int) -> tuple[Generated, ...]: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[tuple[Generated, ...], ...]: ...

    def __getitem__(
        self, place: int | slice
    ) -> tuple[Generated, ...] | tuple[tuple[Generated, ...], ...]:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Generated, ...]]:
        return iter(self.rows)
