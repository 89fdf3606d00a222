"""The settings of a CapFilt run, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_fast.capfilt.decide import FLAGS, VOTES, Flag, Vote
from blip_fast.data.web.open import SHARD_SIZE
from blip_fast.decoding.options import SearchOptions

# What may change between a run and its continuation: where things are, who does how much of it,
# and which views of the result are wanted.
_FREE = (
    "recursive", "image_root", "overwrite", "sidecars", "coco_json", "patience", "shard_index",
    "num_shards",
)  # fmt: skip


@dataclass(frozen=True)
class CapFiltOptions:
    """How captions are written and which texts are kept; all but `without` as in the paper.

    Attributes:
        threshold: a text is kept where its ITM probability is at least this.
        itc_threshold: and its ITC cosine at least this, where given.
        vote: how several filters decide together; see `Vote`.
        weights: of the filters in the vote "sum"; they are scaled to add up to 1.
        without: flags of texts that are not kept, whatever their scores. Filters like captions
            that go round in circles; for the paper's decisions, by scores alone, give none.
        num_captions: written for each picture, by each captioner.
        top_p: of nucleus sampling, which gives more diverse captions than beams (section 4.3).
        resample: how often a caption that goes round in circles is sampled anew, by other random
            numbers; the picture is seen again for it.
        num_beams: beam search instead of sampling, where given.
        prompt: what captions begin with; it is not part of them.
        min_length, max_length: of captions, in tokens, prompt and [DEC] included.
        max_text_length: tokens of a text that the filter reads, as BLIP's retrieval was evaluated
            with; the rest is cut and the candidate flagged as truncated.
        seed: each picture's own is derived from this one and its key.
        batch_size: pictures at once; chosen by device where none is given.
        shard_size: pictures in a shard of the output, where the source has no shards itself.
        recursive: whether folders within the source are read.
        image_root: what relative paths of manifests and tables begin below.
        overwrite: whether another run in the output folder may be replaced.
        gallery: pictures that the report shows, spread evenly over all.
        sidecars: write the kept texts as files, too, below `sidecars/`.
        coco_json: write the kept pairs in COCO's format, too, as `kept_coco.json`.
        patience: seconds that reading or decoding one picture may take.
        shard_index, num_shards: do only every `num_shards`-th shard from `shard_index` on.

    Raises:
        ValueError: where settings are out of range or contradict each other.
    """

    threshold: float = 0.5
    itc_threshold: float | None = None
    vote: Vote = "mean"
    weights: tuple[float, ...] = ()
    without: tuple[Flag, ...] = ("degenerate",)
    num_captions: int = 1
    top_p: float = 0.9
    resample: int = 0
    num_beams: int | None = None
    prompt: str = "a picture of "
    min_length: int = 10
    max_length: int = 30
    max_text_length: int = 35
    seed: int = 0
    batch_size: int | None = None
    shard_size: int = SHARD_SIZE
    recursive: bool = True
    image_root: str | Path | None = None
    overwrite: bool = False
    gallery: int = 200
    sidecars: bool = False
    coco_json: bool = False
    patience: float = 60.0
    shard_index: int = 0
    num_shards: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is a probability; it must be in [0, 1]")
        if self.itc_threshold is not None and not -1 <= self.itc_threshold <= 1:
            raise ValueError(
                f"itc_threshold {self.itc_threshold} is a cosine; it must be in [-1, 1]"
            )
        if self.max_text_length < 3:
            raise ValueError(
                f"max_text_length {self.max_text_length} leaves no token between [ENC] and [SEP]; "
                "give at least 3"
            )
        for name in ("batch_size", "shard_size", "num_shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if not 0 <= self.shard_index < self.num_shards:
            raise ValueError(
                f"shard_index {self.shard_index} must be from 0 to {self.num_shards - 1}, one "
                f"less than num_shards {self.num_shards}"
            )
        if self.resample < 0 or (self.resample and self.num_beams is not None):
            raise ValueError(
                f"resample {self.resample} with num_beams {self.num_beams}: it must be at least 0, "
                "and beams write the same texts every time; leave one of them out"
            )
        if self.patience <= 0:
            raise ValueError(f"patience {self.patience} must be more than 0 seconds")
        self._check_vote()
        check_flags(self.without)
        search = self.search()
        SearchOptions(num_texts=search.pop("num_captions"), **search)

    def _check_vote(self) -> None:
        if self.vote not in VOTES:
            raise ValueError(f"vote is {self.vote!r}; it must be one of {', '.join(VOTES)}")
        if (self.vote == "sum") != bool(self.weights):
            raise ValueError(
                f"vote {self.vote!r} with weights {self.weights}: give weights with the vote "
                "'sum', one a filter, and with no other"
            )
        if any(weight < 0 for weight in self.weights) or (self.weights and not sum(self.weights)):
            raise ValueError(f"weights {self.weights} must be positive")

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

    def rule(self) -> dict[str, Any]:
        """The arguments of `decide.with_scores` that these settings stand for."""
        return {
            "threshold": self.threshold,
            "itc_threshold": self.itc_threshold,
            "how": self.vote,
            "weights": self.shares(),
            "without": self.without,
        }

    def shares(self) -> tuple[float, ...]:
        """The weights, scaled to add up to 1."""
        return tuple(weight / sum(self.weights) for weight in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        values = dataclasses.asdict(self)
        root = self.image_root
        lists = {"weights": list(self.weights), "without": list(self.without)}
        return {**values, **lists, "image_root": root and str(root)}

    def fingerprint(self) -> dict[str, Any]:
        """Those that decide what is written into the shards."""
        return {name: value for name, value in self.to_dict().items() if name not in _FREE}


def check_flags(without: Sequence[str]) -> None:
    """Raise a ValueError where a text cannot have one of some flags."""
    if unknown := [flag for flag in without if flag not in FLAGS]:
        raise ValueError(f"without is {unknown[0]!r}; it must be of {', '.join(FLAGS)}")
