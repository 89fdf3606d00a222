"""A model whose answers are known, without weights and without torch's time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from blip_fast.config import BlipConfig
from blip_fast.images import ImageOptions, Status
from blip_fast.tasks.captions import Captions, Generated


class StubMemory(list):
    """One number for each picture: the mean of its pixels."""


class StubBlip:
    """Counts what it sees; a text with "bad" in it does not match, one with "nan" has no score."""

    def __init__(
        self,
        kind: str = "pretrain",
        size: int = 32,
        trained: bool = True,
        source: str = "stub",
        delay: float = 0.0,
    ) -> None:
        self.delay = delay  # seconds that a look takes
        self.config = BlipConfig(kind=kind)
        self.source, self.trained, self.sha256 = source, trained, "0" * 64
        self.image_options, self.image_size = ImageOptions(size=size), size
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.quantize = None
        self.med = SimpleNamespace(vision=torch.nn.Linear(4, 4))
        self.tokenizer = SimpleNamespace(encode=self._encode)
        self.seen = 0
        self.caption_calls: list[dict[str, Any]] = []

    def _encode(self, texts: Sequence[str], first: str, max_length: int) -> SimpleNamespace:
        cut = [len(text.split()) + 2 > max_length for text in texts]
        return SimpleNamespace(truncated=torch.tensor(cut))

    def see(self, pixels: torch.Tensor, batch_size: int | None = None) -> StubMemory:
        assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3,) + (self.image_size,) * 2
        self.seen += len(pixels)
        time.sleep(self.delay)
        return StubMemory(round(float(p.float().mean())) for p in pixels)

    def caption(self, memory: StubMemory, prompt: str, **settings: Any) -> Captions:
        assert len(settings["seed"]) == len(memory)
        self.caption_calls.append({"prompt": prompt, **settings})
        rows = tuple(
            tuple(
                Generated(f"grey {value} by {seed} {n}", -1.5, (1, 2, 3), (-1.0, -0.5), False)
                for n in range(settings["num_captions"])
            )
            for value, seed in zip(memory, settings["seed"], strict=True)
        )
        return Captions(rows, (Status.SUCCESS,) * len(rows), ("",) * len(rows))

    def match(
        self,
        memory: StubMemory,
        texts: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        *,
        score: str,
        **_: Any,
    ) -> torch.Tensor:
        assert score == "logits"
        values = [self._probability(texts[text]) for _, text in pairs]
        return torch.tensor([[0.0, math.log(value / (1 - value))] for value in values])

    @staticmethod
    def _probability(text: str) -> float:
        if "nan" in text:
            return math.nan
        return 0.12 if "bad" in text else 0.92

    def embed_images(self, memory: StubMemory) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]] * len(memory))

    def embed_texts(self, texts: Sequence[str], max_length: int | None = None) -> torch.Tensor:
        return torch.tensor([[0.25, 0.75]] * len(texts))
