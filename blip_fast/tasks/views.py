"""From whatever a caller calls images to memories, a bounded number at a time.

Memories are large (42 MB an image for a base model in fp32), so those of a long list are made,
used and dropped. A picture that cannot be read leaves a failure in its place and costs its
neighbours nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import IOBase
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from blip_fast.decoding.limit import Limit, in_parts
from blip_fast.images import (
    ImageError,
    ImageOptions,
    Picture,
    Status,
    name_of,
    read_pictures,
    stack,
)
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference
from blip_fast.med.memory import ImageMemory

# One image or many: path, URL, bytes, PIL image, array or tensor; or what `see` made of them.
Images: TypeAlias = Any

# The same as `listed` leaves it: counted, and gone through as often as need be.
ImageList: TypeAlias = ImageMemory | Sequence[Any]

# What is one image, or is told to be none, although it can be gone through.
_ONE = (str, bytes, bytearray, memoryview, Mapping, IOBase)

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """Some of the images of a call, seen.

    Attributes:
        places: their places in the call.
        memory: holds at least them.
        index: [len(places)] int64, where each lies in the memory.
    """

    places: list[int]
    memory: ImageMemory
    index: Tensor


def listed(images: Images, sha256: str) -> ImageList:
    """The images of a call in a list of their own, or their memory.

    A batch [N, ...] of pixels is N images; an array of names or objects is a list of them.

    Args:
        sha256: of the weights that are asked of them, where it is known.

    Raises:
        ValueError: where a memory holds what other weights saw, which means nothing to these.
    """
    if isinstance(images, ImageMemory):
        if sha256 and images.seen_by not in ("", sha256):
            raise ValueError(
                f"these images were seen by other weights (sha256 {images.seen_by[:12]}, this "
                f"model's {sha256[:12]}); see them with this model"
            )
        return images
    if isinstance(images, (Tensor, np.ndarray)):
        pixels = isinstance(images, Tensor) or images.dtype.kind not in "OSU"
        return [images] if pixels and images.ndim != 4 else list(images)
    if isinstance(images, Iterable) and not isinstance(images, _ONE):
        return list(images)
    return [images]


def see_all(
    model: MED, images: ImageList, options: ImageOptions, batch_size: int, sha256: str
) -> ImageMemory:
    """One memory of all images, in order, that tells which weights saw them.

    Raises:
        ImageError: where images cannot be read, naming each; a memory has no holes.
        ValueError: where there are none.
    """
    failures: dict[int, Picture] = {}
    seen = [view.memory for view in views(model, images, options, batch_size, failures)]
    if failures:
        first = next(iter(failures.values()))
        named = "; ".join(f"{f.name}: {f.status} ({f.error})" for f in failures.values())
        raise ImageError(
            first.status,
            f"{len(failures)} of {len(images)} images cannot be read: {named}. Leave them "
            "out, or call caption or match with the images themselves",
        )
    if not seen:
        raise ValueError("there are no images to see")
    return replace(ImageMemory.join(seen), seen_by=sha256)


def views(
    model: MED,
    images: ImageList,
    options: ImageOptions,
    batch_size: int,
    failures: dict[int, Picture],
    chosen: Sequence[int] | None = None,
) -> Iterator[View]:
    """See the images of a call in batches, smaller ones where memory runs out.

    Args:
        failures: filled with the pictures that could not be read, or that memory does not suffice
            for, by their places.
        chosen: places of those that are wanted, in order; all where none are given.
    """
    if isinstance(images, ImageMemory):
        everyone = range(len(images)) if chosen is None else chosen
        for start in range(0, len(everyone), batch_size):
            places = list(everyone[start : start + batch_size])
            yield View(places, images, torch.tensor(places, device=model.device))
        return

    def see(part: Sequence[tuple[int, Tensor]]) -> ImageMemory:
        with inference(model.device):
            return model.see(torch.stack([pixels for _, pixels in part]).to(model.device))

    for places, memory in in_batches(model, see, images, options, batch_size, failures, chosen):
        yield View(places, memory, torch.arange(len(places), device=model.device))
        del memory  # or it would be held while the next is made


def in_batches(
    model: MED,
    work: Callable[[Sequence[tuple[int, Tensor]]], T],
    images: Sequence[Any],
    options: ImageOptions,
    batch_size: int,
    failures: dict[int, Picture],
    chosen: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], T]]:
    """Places of images and what `work` made of them and their pixels, as many at once as fit.

    Args:
        failures, chosen: as of `views`.
    """
    limit = Limit(model, "views", batch_size)
    for places, pixels in read_batches(images, options, batch_size, failures, chosen):
        batch = list(zip(places, pixels, strict=True))
        for part, made, reason in in_parts(work, batch, limit):
            seen = [place for place, _ in part]
            if made is None:
                failures[seen[0]] = _too_large(images[seen[0]], seen[0], reason)
                continue
            yield seen, made
            del made


def _too_large(image: Any, place: int, reason: str) -> Picture:
    """What stands for a picture that memory does not suffice for even alone."""
    return Picture(name_of(image, place), None, Status.TOO_LARGE, reason, 0, 0)


def read_batches(
    images: Sequence[Any],
    options: ImageOptions,
    batch_size: int,
    failures: dict[int, Picture],
    chosen: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Places and pixels [n, 3, S, S] of the images that can be read; the others to `failures`."""
    batch: list[tuple[int, Picture]] = []
    places = range(len(images)) if chosen is None else chosen
    pictures = read_pictures([images[place] for place in places], options)
    for place, picture in zip(places, pictures, strict=True):
        if picture.pixels is None:
            failures[place] = replace(picture, name=name_of(images[place], place))
            continue
        batch.append((place, picture))
        if len(batch) == batch_size:
            yield _stacked(batch)
            batch = []
    if batch:
        yield _stacked(batch)


def _stacked(batch: list[tuple[int, Picture]]) -> tuple[list[int], Tensor]:
    return [place for place, _ in batch], stack([picture for _, picture in batch])
