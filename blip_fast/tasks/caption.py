"""Captioning: images and prompts to texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blip_fast.decoding.engine import Listed, Source, check_room, default_slots, run
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.slots import Request
from blip_fast.images import ImageOptions, Status, read_pictures
from blip_fast.med.blip import MED
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.captions import Generated, Outcome
from blip_fast.tasks.stream import ImageStream
from blip_fast.tasks.views import ImageList
from blip_fast.text import Tokenizer


def caption(
    model: MED,
    tokenizer: Tokenizer,
    images: ImageList,
    prompts: Sequence[str],
    options: SearchOptions,
    seeds: Sequence[int],
    keep_prompt: bool,
    image_options: ImageOptions,
    batch_size: int,
    slots: int | None,
) -> Iterator[Outcome]:
    """Write the texts of each image, in order; one prompt and one seed an image.

    Args:
        batch_size: images seen at once.
        slots: images written about at once; what fits a budget where it is not given.
    """
    packed = tokenizer.encode_prompts(prompts, model.config.text.max_positions)
    check_room(model, packed, options)
    starts, total = packed.tolist(), len(images)

    def request(place: int, memory: int) -> Request:
        return Request(place, memory, starts[place], seeds[place])

    stream: ImageStream | None = None
    source: Source
    if isinstance(images, ImageMemory):
        slots = slots or default_slots(model, options, memory_bytes=0)
        source = Listed(images, [request(place, place) for place in range(total)])
    else:
        slots = slots or default_slots(model, options, model.memory_bytes(image_options.size))
        pictures = read_pictures(images, image_options)
        source = stream = ImageStream(model, pictures, request, slots, batch_size, total)

    done: dict[int, Outcome] = {}
    place = 0
    for ended, texts, reason in run(model, source, options, min(slots, max(1, total))):
        found = tuple(Generated.from_written(text, tokenizer, keep_prompt) for text in texts)
        status = Status.TOO_LARGE if reason else Status.SUCCESS
        done[ended.place] = Outcome(found, status, reason)
        _move_failures(stream, done)
        while place in done:
            yield done.pop(place)
            place += 1
    _move_failures(stream, done)
    yield from (done[place] for place in range(place, total))


def _move_failures(stream: ImageStream | None, done: dict[int, Outcome]) -> None:
    if stream is not None:
        for place, (status, error) in stream.failures.items():
            done[place] = Outcome((), status, error)
        stream.failures.clear()
