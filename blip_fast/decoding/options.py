"""How texts are to be written: the settings of a search, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from numbers import Integral
from typing import Literal, TypeAlias

EarlyStopping: TypeAlias = bool | Literal["never"]

# What transformers, and so the reference, applies to sampling whether it is asked or not.
DEFAULT_TOP_K = 50


@dataclass(frozen=True)
class SearchOptions:
    """Greedy with one beam, beam search with several, nucleus sampling where `top_p` is given.

    Lengths are in tokens and count the prompt and [DEC], as in the reference's `generate`, whose
    defaults these are (BLIP's models/blip.py).

    Attributes:
        num_texts: texts for each memory; beams give their best ones, samples are independent.
        num_beams: ignored when sampling.
        top_p, top_k, temperature: of sampling; the others need `top_p`.
        max_length: a text ends here at the latest.
        min_length: a text may not end before.
        repetition_penalty: 1 changes nothing; where none is given, 1.1 when sampling, else 1.
        length_penalty: beams are ranked by log-probability / length ** this.
        early_stopping: when the beams of a memory stop, as in transformers. True: as soon as there
            are `num_beams` ended texts. False: when the best live beam, ranked by its present
            length, is behind the worst of them. "never": by the length that would suit it best.
        forbidden: token sequences that are never written, prompts' ends included: a text whose
            last tokens are all but the last of a sequence does not go on with that one.
        graphs: on a GPU, replay a recorded step; what is written is the same without.

    Raises:
        ValueError: where settings contradict each other.
    """

    num_texts: int = 1
    num_beams: int = 3
    top_p: float | None = None
    top_k: int = DEFAULT_TOP_K
    temperature: float = 1.0
    max_length: int = 30
    min_length: int = 10
    repetition_penalty: float | None = None
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    forbidden: tuple[tuple[int, ...], ...] = ()
    graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("num_texts", "num_beams", "top_k", "max_length", "min_length"):
            if not isinstance(value := getattr(self, name), Integral):
                raise ValueError(f"{name} is {value!r}; it must be an integer")
        if min(self.num_texts, self.num_beams, self.max_length) < 1 or self.min_length < 0:
            raise ValueError(
                f"num_texts {self.num_texts}, num_beams {self.num_beams} and max_length "
                f"{self.max_length} must be at least 1, min_length {self.min_length} at least 0"
            )
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        if not self.samples and self.num_texts > self.num_beams:
            raise ValueError(
                f"{self.num_texts} texts cannot come from {self.num_beams} beams; ask for as many "
                "beams, or sample with top_p"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be in (0, 1]")
        if self.temperature <= 0 or self.top_k < 0:
            raise ValueError(
                f"temperature {self.temperature} must be above 0 and top_k {self.top_k} at least 0"
            )
        steers = self.temperature != 1 or self.top_k != DEFAULT_TOP_K
        if steers and not self.samples:
            raise ValueError(
                f"temperature {self.temperature} and top_k {self.top_k} are of sampling, and beams "
                "do not sample; give top_p, too, 1 for no limit of its own"
            )
        if not 0 < self.penalty < inf:
            raise ValueError(f"repetition_penalty {self.penalty} must be above 0 and finite")
        if not isfinite(self.length_penalty):
            raise ValueError(f"length_penalty {self.length_penalty} must be finite")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping {self.early_stopping!r} must be a bool or 'never'")
        if () in self.forbidden:
            raise ValueError(f"forbidden has an empty phrase at {self.forbidden.index(())}")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.top_p is not None

    @property
    def penalty(self) -> float:
        """The repetition penalty in force."""
        if self.repetition_penalty is not None:
            return self.repetition_penalty
        return 1.1 if self.samples else 1.0

    @property
    def rows(self) -> int:
        """Live sequences for each memory."""
        return self.num_texts if self.samples else self.num_beams
