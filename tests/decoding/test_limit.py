"""Where memory runs out: half as many are tried, what fits is remembered, one alone is named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from factories import random_med
from torch import nn

from blip_fast.decoding.engine import Listed, generate, run
from blip_fast.decoding.limit import Limit, in_parts, is_out_of_memory
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.slots import Request
from blip_fast.med.blip import MED
from blip_fast.text import pack

DEC = 126


def squares(most: int, poison: int | None = None):
    """Work that fits `most` numbers, and never the poisonous one; and the sizes it was tried at."""
    tried: list[int] = []

    def work(part: Sequence[int]) -> list[int]:
        tried.append(len(part))
        if len(part) > most or poison in part:
            raise torch.OutOfMemoryError(f"{len(part)} are too many")
        return [n * n for n in part]

    return work, tried


def test_halves_remembers_and_goes_on() -> None:
    model = nn.Linear(1, 1)
    work, tried = squares(most=3)
    parts = list(in_parts(work, range(10), Limit(model, "numbers", 8)))
    assert [n for _, result, _ in parts for n in result or ()] == [n * n for n in range(10)]
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    assert Limit(model, "numbers", 8).now == 2 and Limit(model, "numbers", 1).now == 1
    assert Limit(model, "others", 8).now == 8 == Limit(nn.Linear(1, 1), "numbers", 8).now


def test_one_alone_is_named_and_blames_no_other() -> None:
    work, tried = squares(most=8, poison=5)
    limit = Limit(nn.Linear(1, 1), "numbers", 8)
    parts = list(in_parts(work, range(20), limit))
    assert [(list(part), why) for part, result, why in parts if result is None] == [
        ([5], "OutOfMemoryError: 1 are too many")
    ]
    assert sorted(n for part, *_ in parts for n in part) == list(range(20))
    assert limit.now == 8 and tried[-2:] == [8, 6]


def test_other_errors_pass() -> None:
    def work(part: Sequence[int]) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(in_parts(work, [1, 2], Limit(nn.Linear(1, 1), "numbers", 8)))


def test_errors_of_memory_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(num_beams=3, max_length=9, min_length=2),
        SearchOptions(num_texts=2, top_p=0.9, max_length=9, min_length=2),
    ],
    ids=["beams", "samples"],
)
@pytest.mark.parametrize("at", ["prompt", "step"])
def test_texts_are_the_same_in_fewer_slots(
    monkeypatch: pytest.MonkeyPatch, options: SearchOptions, at: str
) -> None:
    model = random_med("caption")
    memory, index = model.see(torch.randn(6, 3, 32, 32)), torch.arange(6)
    prompts = pack([[DEC, 5, 6]] * 6)
    expected = generate(model, memory, index, prompts, options, range(6))
    most, write, tried = 3 * options.rows, MED.write, []

    def tight(self, ids, positions, past, grounding):
        number = len(ids) if bool((positions > 2).all()) else len(ids) // 3 * options.rows
        if (positions > 2).all() == (at == "step"):
            tried.append(number)
            if number > most:
                raise torch.OutOfMemoryError("too many rows")
        return write(self, ids, positions, past, grounding)

    monkeypatch.setattr(MED, "write", tight)
    assert generate(model, memory, index, prompts, options, range(6)) == expected
    assert tried[0] == 6 * options.rows and max(tried[1:]) == most
    tried.clear()
    generate(model, memory, index, prompts, options, range(6))
    assert max(tried) == most, "what was learned was forgotten"


def test_a_text_that_does_not_fit_alone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = random_med("caption"), SearchOptions(num_beams=2, max_length=8, min_length=2)
    memory, index = model.see(torch.randn(5, 3, 32, 32)), torch.arange(5)
    prompts = [[DEC, 5 + n] for n in range(5)]
    expected = generate(model, memory, index, pack(prompts), options)
    write = MED.write

    def poisoned(self, ids, positions, past, grounding):
        if 8 in ids[positions == 1]:
            raise torch.OutOfMemoryError("this one")
        return write(self, ids, positions, past, grounding)

    monkeypatch.setattr(MED, "write", poisoned)
    requests = [Request(n, n, prompt) for n, prompt in enumerate(prompts)]
    found = {
        r.place: (texts, why) for r, texts, why in run(model, Listed(memory, requests), options, 4)
    }
    assert found.pop(3) == ([], "OutOfMemoryError: this one")
    assert found == {n: (expected[n], "") for n in (0, 1, 2, 4)}
    with pytest.raises(torch.OutOfMemoryError, match="one prompt alone is too much: .*this one"):
        generate(model, memory, index, pack(prompts), options)
