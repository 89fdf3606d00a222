"""Images by the thousand under a budget: their memories are made, used and dropped.

A memory is 24 times as large as the image tokens it is projected from (21 MB and 0.9 MB an image
for a base model in bf16), so what is left of the budget beside the memories in use keeps tokens:
an image whose features are asked for first and whose memory comes later is then still seen once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blip_fast.data import chunks
from blip_fast.images import ImageOptions, Picture
from blip_fast.images.load import name_of
from blip_fast.med.blip import MED
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.views import Images, View, as_list, count, read_batches

# 24 images of a base model in bf16 at 384 pixels; on other devices 200.
_CPU_BUDGET, _DEVICE_BUDGET = 2**29, 2**32


class ImageStream:
    """The images of a call, of which few are held at once.

    Attributes:
        failures: the pictures that could not be read so far, by their places.
    """

    def __init__(
        self,
        model: MED,
        images: Images,
        options: ImageOptions,
        batch_size: int,
        memory_budget: int | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            batch_size: the most images seen at once.
            memory_budget: bytes that memories and kept tokens may take together; by device where
                none is given. An `ImageMemory` in place of images is the caller's own and free.

        Raises:
            ValueError: where not even one memory fits.
        """
        self.failures: dict[int, Picture] = {}
        self._model, self._options = model, options
        self._images = images if isinstance(images, ImageMemory) else as_list(images)
        self._kept: dict[int, Tensor] = {}
        if memory_budget is None:
            memory_budget = _CPU_BUDGET if model.device.type == "cpu" else _DEVICE_BUDGET
        each = memory_bytes(model, options.size)
        if memory_budget < each and not isinstance(images, ImageMemory):
            raise ValueError(
                f"memory_budget is {memory_budget} bytes; the memory of one image of "
                f"{options.size} pixels takes {each}"
            )
        # Half of the budget at most, so that tokens have the other.
        self._at_once = max(1, min(batch_size, memory_budget // 2 // each))
        self._room = memory_budget - self._at_once * each

    def __len__(self) -> int:
        return count(self._images)

    def features(self) -> Tensor:
        """[N, E] float32 on the host: the ITC features; NaN where an image cannot be read."""
        if isinstance(self._images, ImageMemory):
            assert self._images.feature is not None
            return self._images.feature.float().cpu()
        features = torch.full((len(self), self._model.config.embed_width), torch.nan)
        for places, pixels in self._read(range(len(self))):
            with torch.inference_mode():
                tokens = self._model.vision(pixels.to(self._model.device))
                features[places] = self._model.image_feature(tokens).cpu()
            self._keep(places, tokens)
        return features

    def memories(self, places: Sequence[int]) -> Iterator[View]:
        """The memories of some images, few at a time; drop one before asking for the next."""
        if isinstance(self._images, ImageMemory):
            for some in chunks(places, self._at_once):
                yield View(some, self._images, torch.tensor(some))
            return
        kept = [place for place in places if place in self._kept]
        for some in chunks(kept, self._at_once):
            tokens = torch.stack([self._kept[place] for place in some])
            yield self._view(some, tokens)
        rest = [p for p in places if p not in self._kept and p not in self.failures]
        for some, pixels in self._read(rest):
            with torch.inference_mode():
                tokens = self._model.vision(pixels.to(self._model.device))
            yield self._view(some, tokens)

    def _view(self, places: list[int], tokens: Tensor) -> View:
        with torch.inference_mode():
            return View(places, self._model.memory_of(tokens), torch.arange(len(places)))

    def _keep(self, places: Sequence[int], tokens: Tensor) -> None:
        """Hold the tokens of a batch while there is room."""
        if tokens.nbytes <= self._room:
            self._room -= tokens.nbytes
            self._kept.update(zip(places, tokens, strict=True))

    def _read(self, places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Places and pixels of some images, in batches; those that cannot be read to failures."""
        sources = [self._images[place] for place in places]
        unread: dict[int, Picture] = {}
        for some, pixels in read_batches(sources, self._options, self._at_once, unread):
            yield [places[row] for row in some], pixels
        for row, picture in unread.items():
            name = name_of(sources[row], places[row])
            self.failures[places[row]] = replace(picture, name=name)


def memory_bytes(model: MED, image_size: int) -> int:
    """What the memory of one image takes, its feature included."""
    config = model.config
    tokens = (image_size // config.vision.patch_size) ** 2 + 1
    layers = config.text.depth * (2 if config.kind == "nlvr" else 1)
    feature = 4 * config.embed_width if config.has_matching else 0
    return 2 * layers * tokens * config.text.width * model.dtype.itemsize + feature
