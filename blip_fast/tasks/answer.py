"""Visual question answering: written by the decoder, or ranked over candidates.

The question is grounded in the image, the answer in the question's states (BLIP, section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.rank import rank_candidates
from blip_fast.decoding.search import Written
from blip_fast.images import ImageOptions, Picture
from blip_fast.med.blip import MED
from blip_fast.med.memory import QuestionMemory
from blip_fast.tasks.caption import to_captions
from blip_fast.tasks.captions import Captions, Generated
from blip_fast.tasks.match import encode, grounded_token
from blip_fast.tasks.views import Images, count, views
from blip_fast.text import Tokenizer


def answer(
    model: MED,
    tokenizer: Tokenizer,
    images: Images,
    questions: Sequence[str],
    candidates: Sequence[str] | None,
    k: int,
    options: SearchOptions,
    max_length: int,
    image_options: ImageOptions,
    batch_size: int,
) -> Captions:
    """One answer to one question about each image."""
    rows: list[tuple[Generated, ...]] = [()] * count(images)
    failures: dict[int, Picture] = {}
    listed = None
    if candidates is not None:
        listed = encode(tokenizer, candidates, "[DEC]", max_length).tolist()
    for view in views(model, images, image_options, batch_size, failures):
        asked = encode(
            tokenizer, [questions[i] for i in view.places], grounded_token(model), max_length
        ).to(model.device)
        with torch.inference_mode():
            memory = model.ask(asked, view.memory, view.index)
        if listed is None:
            texts = _write(model, tokenizer, memory, options)
        else:
            texts = _rank(model, memory, listed, k)
        for place, written in zip(view.places, texts, strict=True):
            rows[place] = (Generated.from_written(written, tokenizer, keep_prompt=False),)
    return to_captions(rows, failures)


def _write(
    model: MED, tokenizer: Tokenizer, memory: QuestionMemory, options: SearchOptions
) -> list[Written]:
    starts = tokenizer.encode_prompts([""] * len(memory), max_length=1).to(model.device)
    everyone = torch.arange(len(memory), device=model.device)
    return [texts[0] for texts in generate(model, memory, everyone, starts, options)]


def _rank(
    model: MED, memory: QuestionMemory, listed: Sequence[Sequence[int]], k: int
) -> list[Written]:
    return [
        Written(list(listed[best.candidate]), 1, best.token_log_probabilities)
        for best in rank_candidates(model, memory, listed, k)
    ]
