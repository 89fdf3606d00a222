"""The loop that writes: laws 1 and 2, prompts of unequal length, settings."""

from __future__ import annotations

import pytest
import torch
from factories import random_med

from blip_fast import kernels
from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.med.layers import CrossAttention
from blip_fast.text import pack

DEC, SEP = 126, 102


def test_images_are_projected_once_and_memory_is_never_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_med("caption")
    projections, read = [], set()
    project, attend = CrossAttention.project, kernels.decode_cross_attention

    def counted_project(self, tokens):
        projections.append(tokens.shape[0])
        return project(self, tokens)

    def watched_attend(q, memory, index, key_lengths=None):
        read.add(memory.data_ptr())
        return attend(q, memory, index, key_lengths)

    monkeypatch.setattr(CrossAttention, "project", counted_project)
    monkeypatch.setattr(kernels, "decode_cross_attention", watched_attend)
    memory = model.see(torch.randn(2, 3, 32, 32))
    for options in (
        SearchOptions(num_beams=3, max_length=9, min_length=4),
        SearchOptions(num_texts=5, top_p=0.9, max_length=9, min_length=4),
    ):
        prompts = pack([[DEC], [DEC, 5, 6]])
        generate(model, memory, torch.arange(2), prompts, options, [0, 1])
    assert projections == [2] * model.config.text.depth
    assert read == {layer.data_ptr() for layer in memory.pairs}


def test_several_texts_of_one_image_share_its_memory() -> None:
    model = random_med("caption")
    memory = model.see(torch.randn(3, 3, 32, 32))
    index = torch.tensor([2, 0, 2, 2])
    prompts = pack([[DEC, 5], [DEC], [DEC, 6, 7], [DEC]])
    options = SearchOptions(num_beams=2, max_length=8, min_length=0)
    together = generate(model, memory, index, prompts, options)
    for n, prompt in enumerate(prompts.tolist()):
        alone = generate(model, memory, index[n : n + 1], pack([prompt]), options)
        assert alone[0][0].token_ids == together[n][0].token_ids


def test_lengths_count_the_prompt_and_are_kept() -> None:
    model = random_med("caption")
    with torch.no_grad():
        model.lm_head.bias[SEP] += 100  # would end at once
    memory = model.see(torch.randn(2, 3, 32, 32))
    prompts = pack([[DEC], [DEC, 5, 6, 7]])
    for options in (
        SearchOptions(num_beams=1, max_length=9, min_length=6),
        SearchOptions(num_beams=3, max_length=9, min_length=6),
        SearchOptions(top_p=0.5, max_length=9, min_length=6),
    ):
        for (text, *_), prompt in zip(
            generate(model, memory, torch.arange(2), prompts, options, [0, 1]),
            prompts.tolist(),
            strict=True,
        ):
            assert text.token_ids[: len(prompt)] == prompt == text.token_ids[: text.prompt_length]
            assert text.token_ids.index(SEP) == 6 == len(text.token_ids) - 1
            assert len(text.token_log_probabilities) == 7 - len(prompt)


def test_a_prompt_without_room_is_refused() -> None:
    model = random_med("caption")
    memory = model.see(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="prompt 0 of 5 tokens .* no room under max_length 5"):
        generate(
            model,
            memory,
            torch.arange(1),
            pack([[DEC, 5, 6, 7, 8]]),
            SearchOptions(max_length=5, min_length=0),
        )
