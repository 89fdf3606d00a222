"""Random models and texts that the end-to-end benches share.

Weights have a standard deviation of 0.04: with BERT's 0.02 all images look alike to a random model,
and nothing that compares scores could fail.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import blip_fast
from bench.harness import Timing
from blip_fast.config import IMAGE_MEAN, IMAGE_STD, BlipConfig, Kind, TextConfig, VisionConfig
from blip_fast.images import ImageOptions
from blip_fast.med.blip import MED, initialise
from blip_fast.text import Tokenizer

CLS, SEP, DEC, ENC = 101, 102, 30522, 30523
_WORDS = 30_000
_SPREAD = 2.0  # times BERT's standard deviation


def vocabulary() -> list[str]:
    """BERT's 30,522 places: its special tokens, and words w0, w1, ..."""
    before = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{i}" for i in range(30_522 - len(before))]
    return [*before, *words]


def texts(number: int, seed: int = 0) -> list[str]:
    """Random captions of 9 to 16 tokens, as COCO's, the first and the last token included."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(7, 15, (number,), generator=generator).tolist()
    rows = torch.randint(_WORDS, (number, 14), generator=generator).tolist()
    return [" ".join(f"w{i}" for i in row[:n]) for row, n in zip(rows, lengths, strict=True)]


def pictures(number: int, size: int) -> Tensor:
    """[N, 3, S, S] uint8: smooth noise, each of a hue of its own."""
    generator = torch.Generator().manual_seed(1)
    hue = torch.rand(number, 3, 1, 1, generator=generator)
    coarse = torch.rand(number, 3, 6, 6, generator=generator) * 0.5 + hue * 0.5
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (smooth * 255).clamp(0, 255).byte()


def normalised(images: Tensor) -> Tensor:
    """uint8 images as a peer takes them, float32."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    return (images / 255 - mean) / std


def encoded(model: blip_fast.Blip, some: list[str], length: int | None = None) -> list[Tensor]:
    """Ids and mask [N, L] int64 of texts from [ENC] on, padded to `length` or the longest."""
    rows = model.tokenizer.encode(some, "[ENC]", length or 512).tolist()
    length = length or max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return [ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])]


def matcher(dtype: torch.dtype, size: int, layers: int) -> blip_fast.Blip:
    """A matching model of base width."""
    return _random("retrieval", dtype, size, layers)


def captioner(dtype: torch.dtype, size: int, layers: int) -> blip_fast.Blip:
    """A captioning model of base width."""
    return _random("caption", dtype, size, layers)


def _random(kind: Kind, dtype: torch.dtype, size: int, layers: int) -> blip_fast.Blip:
    config = BlipConfig(
        kind=kind,
        vision=replace(VisionConfig(image_size=size), depth=layers),
        text=replace(TextConfig(), depth=layers),
    )
    med = MED(config)
    initialise(med, seed=0)
    _spread(med)
    med = med.to(dtype).eval().requires_grad_(False)
    tokenizer = Tokenizer(vocabulary())
    return blip_fast.Blip(med, tokenizer, "random", "", True, ImageOptions(size=size))


def beside_transformers(dtype: torch.dtype, size: int, layers: int) -> tuple[Any, blip_fast.Blip]:
    """A random `BlipForImageTextRetrieval`, and ours that shares its weights."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    torch.manual_seed(0)
    config = BlipConfig(
        text_config={"num_attention_heads": 12, "num_hidden_layers": layers},
        vision_config={"image_size": size, "num_hidden_layers": layers},
    )
    theirs = BlipForImageTextRetrieval(config).eval().requires_grad_(False)
    _spread(theirs)
    theirs = theirs.to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(vocabulary()))
        return theirs, blip_fast.from_transformers(theirs, vocabulary=path)


def _spread(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= _SPREAD


def scaled(timing: Timing, by: float) -> Timing:
    """The time of a whole, of which a part was measured."""
    return Timing(tuple(turn * by for turn in timing.turns))
