"""Visual question answering: written by the decoder, or ranked over candidates.

The question is grounded in the image, the answer in the question's states (BLIP, section 5.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blip_fast.decoding.engine import generate
from blip_fast.decoding.limit import Limit, in_parts
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.rank import Candidates, rank_candidates
from blip_fast.decoding.search import Written
from blip_fast.images import ImageOptions, Picture, Status
from blip_fast.med.blip import MED
from blip_fast.med.inference import inference
from blip_fast.med.memory import ImageMemory, QuestionMemory
from blip_fast.tasks.captions import Captions, Generated, Outcome
from blip_fast.tasks.match import encode, grounded_token
from blip_fast.tasks.views import ImageList, read_batches
from blip_fast.text import Tokenizer


def answer(
    model: MED,
    tokenizer: Tokenizer,
    images: ImageList,
    questions: Sequence[str],
    candidates: Sequence[str] | None,
    k: int,
    options: SearchOptions,
    max_length: int,
    image_options: ImageOptions,
    batch_size: int,
) -> Captions:
    """One answer to one question about each image."""
    listed = None
    if candidates is not None:
        listed = Candidates.of(encode(tokenizer, candidates, "[DEC]", max_length).tolist())
    first = grounded_token(model)

    def work(part: Sequence[tuple[int, Tensor | None]]) -> list[Written]:
        """Answer the questions at some places, about these pixels or the memory given."""
        places = [place for place, _ in part]
        asked = encode(tokenizer, [questions[i] for i in places], first, max_length)
        with inference(model.device):
            if isinstance(images, ImageMemory):
                memory, index = images, torch.tensor(places, device=model.device)
            else:
                pixels = torch.stack([pixels for _, pixels in part if pixels is not None])
                memory = model.see(pixels.to(model.device))
                index = torch.arange(len(part), device=model.device)
            grounding = model.ask(asked.to(model.device), memory, index)
        if listed is None:
            return _write(model, tokenizer, grounding, options)
        return _rank(model, grounding, listed, k)

    failures: dict[int, Picture] = {}
    outcomes = [Outcome(()) for _ in range(len(images))]
    limit = Limit(model, "answers", batch_size)
    for batch in _batches(images, image_options, batch_size, failures):
        for part, texts, reason in in_parts(work, batch, limit):
            for row, (place, _) in enumerate(part):
                if texts is None:
                    outcomes[place] = Outcome((), Status.TOO_LARGE, reason)
                    continue
                found = Generated.from_written(texts[row], tokenizer, keep_prompt=False)
                outcomes[place] = Outcome((found,))
    for place, picture in failures.items():
        outcomes[place] = Outcome((), picture.status, picture.error)
    return Captions.of(outcomes)


def _batches(
    images: ImageList, options: ImageOptions, size: int, failures: dict[int, Picture]
) -> Iterator[list[tuple[int, Tensor | None]]]:
    """Places and pixels, or places alone where the images are seen already."""
    if isinstance(images, ImageMemory):
        for start in range(0, len(images), size):
            yield [(place, None) for place in range(start, min(start + size, len(images)))]
        return
    for places, pixels in read_batches(images, options, size, failures):
        yield list(zip(places, pixels, strict=True))


def _write(
    model: MED, tokenizer: Tokenizer, memory: QuestionMemory, options: SearchOptions
) -> list[Written]:
    starts = tokenizer.encode_prompts([""] * len(memory), max_length=1)
    everyone = torch.arange(len(memory))
    return [texts[0] for texts in generate(model, memory, everyone, starts, options)]


def _rank(model: MED, memory: QuestionMemory, listed: Candidates, k: int) -> list[Written]:
    return [
        Written(list(listed.sequences[best.candidate]), 1, best.token_log_probabilities)
        for best in rank_candidates(model, memory, listed, k)
    ]
