"""A step is one program over tables that stay where they are: what a CUDA graph needs."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from factories import random_med
from tape import Recorder, Refused
from torch import Tensor

from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.replay import Replay, recorder_of
from blip_fast.decoding.search import Written
from blip_fast.decoding.slots import Request, Slots
from blip_fast.med.blip import MED
from blip_fast.med.memory import ImageMemory
from blip_fast.text import pack

DEC, SEP = 126, 102
SEARCHES = {
    "greedy": SearchOptions(num_beams=1, max_length=24, min_length=3),
    "beams": SearchOptions(num_beams=3, num_texts=2, max_length=24, min_length=3),
    "never": SearchOptions(
        num_beams=2, max_length=24, min_length=3, early_stopping="never", length_penalty=2.0
    ),
    "samples": SearchOptions(num_texts=3, top_p=0.9, max_length=24, min_length=3),
    "steered": SearchOptions(
        num_beams=2, max_length=24, min_length=5, forbidden=((20,), (5, 6)), repetition_penalty=1.2
    ),
}
PROMPTS = [[DEC], [DEC, 5, 6, 7], [DEC, 8], [DEC], [DEC, 9, 10], [DEC, 11], [DEC, 5, 6, 7]]
IMAGES = [0, 1, 2, 2, 1, 0, 0]
SEEDS = [3, 1, 4, 1, 5, 9, 2]


def problem() -> tuple[MED, ImageMemory]:
    model = random_med("caption")
    with torch.no_grad():
        model.lm_head.bias[SEP] += 2.5  # texts end at different lengths
    return model, model.see(torch.randn(3, 3, 32, 32))


def write_all(slots: Slots) -> list[list[Written]]:
    """The texts of all prompts, which take the slots one after the other."""
    waiting = [Request(n, *row) for n, row in enumerate(zip(IMAGES, PROMPTS, SEEDS, strict=True))]
    texts: list[list[Written]] = [[] for _ in waiting]
    with torch.inference_mode():
        while waiting or slots.requests:
            entering, waiting = waiting[: slots.free], waiting[slots.free :]
            for request, found in slots.advance(entering):
                texts[request.place] = found
    return texts


@pytest.mark.parametrize("name", SEARCHES)
def test_one_recorded_step_writes_all_texts(name: str) -> None:
    model, memory = problem()
    options = SEARCHES[name]
    expected = generate(model, memory, torch.tensor(IMAGES), pack(PROMPTS), options, SEEDS)
    recorder = Recorder()
    slots = Slots(model, memory.pairs, None, options, 3, recorder)
    tables = places(slots)
    texts = write_all(slots)
    for found, others in zip(texts, expected, strict=True):
        assert [t.token_ids for t in found] == [t.token_ids for t in others]
        for one, other in zip(found, others, strict=True):
            logs = torch.tensor(one.token_log_probabilities)
            torch.testing.assert_close(logs, torch.tensor(other.token_log_probabilities))
    assert len(recorder.tapes) == 1 and recorder.replays > 12
    assert tables.items() <= places(slots).items(), "a table has moved"


def places(slots: Slots) -> dict[str, int]:
    """Where the tables of the slots and of their search lie."""
    owners = {"slots": slots, "search": slots._search, "cache": slots._cache}
    return {
        f"{owner}.{name}": value.data_ptr()
        for owner, holder in owners.items()
        for name, value in vars(holder).items()
        if isinstance(value, Tensor)
    }


def test_a_step_that_asks_the_device_is_refused() -> None:
    model, memory = problem()
    options = SEARCHES["greedy"]
    recorder = Recorder()
    slots = Slots(model, memory.pairs, None, options, 3, recorder)
    slots._compact = True  # asks which rows go on
    with pytest.warns(UserWarning, match="one by one, slower: index.Tensor by a mask"):
        texts = write_all(slots)
    assert not recorder.tapes
    expected = generate(model, memory, torch.tensor(IMAGES), pack(PROMPTS), options, SEEDS)
    assert [t[0].token_ids for t in texts] == [t[0].token_ids for t in expected]
    with pytest.raises(Refused, match="by a mask"):
        Recorder()(lambda: torch.ones(3)[torch.ones(3) > 0].sum() and None)


def test_the_first_call_is_not_recorded_and_a_lack_of_memory_is_passed_on() -> None:
    done, recorded = [], []

    def recorder(work):
        recorded.append(len(done))
        return lambda: done.append("replayed")

    replay = Replay(recorder)
    for _ in range(3):
        replay(lambda: done.append("run"))
    assert done == ["run", "replayed", "replayed"] and recorded == [1]

    def full(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replay = Replay(full)
    replay(lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        replay(lambda: None)


def test_slots_go_with_their_last_name() -> None:
    """Caches are large: they must not wait for the collector of cycles."""
    model, memory = problem()
    slots = Slots(model, memory.pairs, None, SEARCHES["greedy"], 2)
    write_all(slots)
    gone = weakref.ref(slots)
    gc.disable()
    try:
        del slots
        assert gone() is None
    finally:
        gc.enable()


def test_a_cpu_records_nothing() -> None:
    assert recorder_of(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", SEARCHES)
def test_a_graph_writes_the_same_as_eager_steps(name: str) -> None:
    model, memory = problem()
    model, pairs = model.cuda(), memory.pairs.cuda()
    options = SEARCHES[name]
    recorder, replays = recorder_of(torch.device("cuda")), [0]

    def counted(work):
        assert recorder is not None
        graph = recorder(work)

        def replay() -> None:
            replays[0] += 1
            graph()

        return replay

    with_graph = write_all(Slots(model, pairs, None, options, 3, counted))
    eager = Slots(model, pairs, None, SearchOptions(**{**vars(options), "graphs": False}), 3)
    assert [[t.token_ids for t in row] for row in with_graph] == [
        [t.token_ids for t in row] for row in write_all(eager)
    ]
    assert replays[0] > 12
