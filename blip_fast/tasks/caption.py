"""Captioning: images and prompts to texts."""

from __future__ import annotations

from collections.abc import Sequence

from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.images import ImageOptions, Picture, Status
from blip_fast.med.blip import MED
from blip_fast.tasks.captions import Captions, Generated
from blip_fast.tasks.views import Images, count, views
from blip_fast.text import Tokenizer


def caption(
    model: MED,
    tokenizer: Tokenizer,
    images: Images,
    prompts: Sequence[str],
    options: SearchOptions,
    seeds: Sequence[int],
    keep_prompt: bool,
    image_options: ImageOptions,
    batch_size: int,
) -> Captions:
    """Write the texts of each image; one prompt and one seed an image."""
    rows: list[tuple[Generated, ...]] = [()] * count(images)
    failures: dict[int, Picture] = {}
    for view in views(model, images, image_options, batch_size, failures):
        packed = tokenizer.encode_prompts(
            [prompts[i] for i in view.places], model.config.text.max_positions
        ).to(model.device)
        texts = generate(
            model, view.memory, view.index, packed, options, [seeds[i] for i in view.places]
        )
        for place, written in zip(view.places, texts, strict=True):
            rows[place] = tuple(Generated.from_written(w, tokenizer, keep_prompt) for w in written)
    return to_captions(rows, failures)


def to_captions(rows: Sequence[tuple[Generated, ...]], failures: dict[int, Picture]) -> Captions:
    """Join the texts of the images that were read with the reasons why others were not."""
    return Captions(
        rows=tuple(rows),
        status=tuple(
            failures[i].status if i in failures else Status.SUCCESS for i in range(len(rows))
        ),
        errors=tuple(failures[i].error if i in failures else "" for i in range(len(rows))),
    )
