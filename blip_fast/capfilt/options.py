"""The settings of a CapFilt run, checked before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from blip_fast.decoding.options import SearchOptions


@dataclass(frozen=True)
class CapFiltOptions:
    """How captions are written and which texts are kept; the defaults are the paper's.

    Attributes:
        threshold: a text is kept where its ITM probability is at least this.
        num_captions: written for each picture.
        top_p: of nucleus sampling, which gives more diverse captions than beams (section 4.3).
        num_beams: beam search instead of sampling, where given.
        prompt: what captions begin with; it is not part of them.
        min_length, max_length: of captions, in tokens, prompt and [DEC] included.
        max_text_length: tokens of a text that the filter reads, as BLIP's retrieval was evaluated
            with; the rest is cut and the candidate flagged as truncated.
        seed: each picture's own is derived from this one and its key.
        batch_size: pictures at once; chosen by device where none is given.
        recursive: whether folders within the source are read.
        overwrite: whether a finished run in the output folder may be replaced.
        gallery: pictures that the report shows, spread evenly over all.

    Raises:
        ValueError: where settings are out of range or contradict each other.
    """

    threshold: float = 0.5
    num_captions: int = 1
    top_p: float = 0.9
    num_beams: int | None = None
    prompt: str = "a picture of "
    min_length: int = 10
    max_length: int = 30
    max_text_length: int = 35
    seed: int = 0
    batch_size: int | None = None
    recursive: bool = True
    overwrite: bool = False
    gallery: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is a probability; it must be in [0, 1]")
        if self.max_text_length < 3:
            raise ValueError(
                f"max_text_length {self.max_text_length} leaves no token between [ENC] and [SEP]; "
                "give at least 3"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} must be at least 1")
        search = self.search()
        SearchOptions(num_texts=search.pop("num_captions"), **search)

    def search(self) -> dict[str, Any]:
        """The arguments of `Blip.caption` that these settings stand for."""
        written = {
            "num_captions": self.num_captions,
            "min_length": self.min_length,
            "max_length": self.max_length,
        }
        if self.num_beams is not None:
            return {**written, "num_beams": self.num_beams}
        return {**written, "top_p": self.top_p}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
