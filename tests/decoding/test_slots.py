"""Slots: nothing waits, nothing ended is computed, and who shares the slots changes nothing."""

from __future__ import annotations

import pytest
import torch
from factories import random_med

from blip_fast.decoding.engine import Listed, generate, run
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.search import Written
from blip_fast.decoding.slots import Request, Slots
from blip_fast.med.blip import MED
from blip_fast.text import pack

DEC, SEP = 126, 102
SEARCHES = {
    "greedy": SearchOptions(num_beams=1, max_length=14, min_length=3),
    "beams": SearchOptions(num_beams=3, num_texts=2, max_length=14, min_length=3),
    "samples": SearchOptions(num_texts=3, top_p=0.9, max_length=14, min_length=3),
    "steered": SearchOptions(
        num_beams=2, max_length=14, min_length=5, forbidden=((20,), (5, 6)), repetition_penalty=1.2
    ),
}
PROMPTS = [[DEC], [DEC, 5, 6, 7], [DEC, 8], [DEC], [DEC, 9, 10], [DEC, 11], [DEC, 5, 6, 7]]
IMAGES = [0, 1, 2, 2, 1, 0, 0]
SEEDS = [3, 1, 4, 1, 5, 9, 2]


def model_that_ends() -> MED:
    model = random_med("caption")
    with torch.no_grad():
        model.lm_head.bias[SEP] += 2.5
    return model


def requests() -> list[Request]:
    return [Request(n, *row) for n, row in enumerate(zip(IMAGES, PROMPTS, SEEDS, strict=True))]


def same(texts: list[list[Written]], expected: list[list[Written]]) -> None:
    for some, others in zip(texts, expected, strict=True):
        assert [t.token_ids for t in some] == [t.token_ids for t in others]
        for one, other in zip(some, others, strict=True):
            logs = torch.tensor(one.token_log_probabilities)
            torch.testing.assert_close(logs, torch.tensor(other.token_log_probabilities))


@pytest.mark.parametrize("name", SEARCHES)
def test_texts_do_not_depend_on_the_slots(name: str) -> None:
    model, options = model_that_ends(), SEARCHES[name]
    memory, index = model.see(torch.randn(3, 3, 32, 32)), torch.tensor(IMAGES)
    alone = generate(model, memory, index, pack(PROMPTS), options, SEEDS, slots=1)
    assert len({len(text.token_ids) for texts in alone for text in texts}) > 2
    for slots in (2, 3, 7):
        same(generate(model, memory, index, pack(PROMPTS), options, SEEDS, slots), alone)
    order = [4, 0, 6, 2, 5, 1, 3]
    turned = generate(
        model,
        memory,
        index[order],
        pack([PROMPTS[i] for i in order]),
        options,
        [SEEDS[i] for i in order],
        slots=2,
    )
    same(turned, [alone[i] for i in order])


@pytest.mark.parametrize("name", SEARCHES)
def test_fixed_shapes_give_the_same_texts(name: str) -> None:
    """What a device without cheap answers does: all rows in every step, asked every eighth."""
    model, options = model_that_ends(), SEARCHES[name]
    memory = model.see(torch.randn(3, 3, 32, 32))
    index = torch.tensor(IMAGES)
    expected = generate(model, memory, index, pack(PROMPTS), options, SEEDS)
    texts: list[list[Written]] = [[] for _ in PROMPTS]
    waiting = requests()
    with torch.inference_mode():
        slots = Slots(model, memory.pairs, None, options, 3)
        slots._compact = False
        while waiting or slots.requests:
            entering, waiting = waiting[: slots.free], waiting[slots.free :]
            for request, found in slots.advance(entering):
                texts[request.place] = found
    same(texts, expected)


@pytest.mark.parametrize("name", SEARCHES)
def test_only_tokens_that_are_wanted_are_computed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, options = model_that_ends(), SEARCHES[name]
    memory = model.see(torch.randn(3, 3, 32, 32))
    rows, write = [], MED.write

    def counted(self, ids, positions, past, grounding):
        rows.append(len(ids))
        return write(self, ids, positions, past, grounding)

    monkeypatch.setattr(MED, "write", counted)
    texts = generate(model, memory, torch.tensor(IMAGES), pack(PROMPTS), options, SEEDS, slots=3)
    prompts = sum(len(prompt) for prompt in PROMPTS)
    if name in ("greedy", "samples"):  # the last token of a text is chosen and not run
        new = [len(t.token_log_probabilities) - 1 for found in texts for t in found]
        assert sum(rows) == prompts + sum(new)
    assert max(rows) <= max(3 * options.rows, prompts)


def test_who_waits_enters_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = model_that_ends(), SEARCHES["greedy"]
    memory, index = model.see(torch.randn(3, 3, 32, 32)), torch.tensor(IMAGES)
    texts = generate(model, memory, index, pack(PROMPTS), options)
    steps, advance = [0], Slots.advance

    def counted(self, entering):
        steps[0] += 1
        return advance(self, entering)

    monkeypatch.setattr(Slots, "advance", counted)
    ended = {r.place: steps[0] for r, _, _ in run(model, Listed(memory, requests()), options, 2)}
    # Two slots, first come first served: when a text ends follows from the lengths of all.
    busy_until, expected = [0, 0], {}
    for place, (text,) in enumerate(texts):
        slot = busy_until.index(min(busy_until))
        busy_until[slot] += len(text.token_log_probabilities)
        expected[place] = busy_until[slot]
    assert ended == expected
