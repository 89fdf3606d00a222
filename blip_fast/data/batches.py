"""Batches of pictures read ahead, and random seeds that belong to a picture, not to its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from blip_fast.images import ImageOptions, Picture, read_pictures, stack

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Neighbouring pictures of a job, those that could not be read among them.

    Attributes:
        pictures: in the order of the sources.
        places: where in `pictures` those lie that could be read.
        pixels: uint8 [len(places), 3, S, S]; None where `places` is empty.
    """

    pictures: list[Picture]
    places: list[int]
    pixels: Tensor | None


def read_batches(
    sources: Iterable[Path | str], options: ImageOptions, size: int
) -> Iterator[Batch]:
    """Read pictures in order, `size` at a time; reading goes on while a batch is worked on."""
    for pictures in chunks(read_pictures(sources, options), size):
        places = [i for i, picture in enumerate(pictures) if picture.pixels is not None]
        pixels = stack([pictures[i] for i in places]) if places else None
        yield Batch(pictures, places, pixels)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` neighbours; the last may be shorter.

    Raises:
        ValueError: where `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"the batch size is {size}; it must be at least 1")
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def default_batch_size(device_type: str) -> int:
    """Pictures in a batch: the memory of a base model's image takes 42 MB in fp32."""
    return 8 if device_type == "cpu" else 64


def stable_seed(key: str, seed: int) -> int:
    """A seed for one picture: the same in every batch, order, process and machine.

    Returns:
        63 bits of BLAKE2b of the job's seed and the picture's key.
    """
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
