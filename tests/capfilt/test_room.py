"""Where a device's memory runs out: fewer pictures at once, and a row for one that fits nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import random_med, tiny_vocabulary

from blip_fast.capfilt import CapFiltOptions, StageFailed, read_rows, run_capfilt
from blip_fast.capfilt.rows import committed
from blip_fast.data import stable_seed
from blip_fast.decoding.slots import Request, Slots
from blip_fast.images import ImageOptions
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer

WHOLE = CapFiltOptions(batch_size=7)
POISON = "b_bad.png"  # the second of the six that can be read; its pixels are all 40

# CUDA's error has a type, that of torch's allocator on a CPU has not.
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."),
]


def test_too_little_device_memory_halves_the_batch(source: Path, tmp_path: Path, stub: Any) -> None:
    whole = CapFiltOptions(batch_size=7)
    plain, small = stub(), stub()
    run_capfilt(source, tmp_path / "a", plain, plain, whole)
    see, refused = small.see, []

    def out_of_memory(pixels: torch.Tensor, batch_size: int | None = None) -> Any:
        if len(pixels) > 2:
            refused.append(len(pixels))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return see(pixels, batch_size)

    small.see = out_of_memory
    run_capfilt(source, tmp_path / "b", small, small, whole)
    assert list(read_rows(tmp_path / "a")) == list(read_rows(tmp_path / "b"))
    assert refused == [6, 3]  # it is remembered for the filter's turn, and for all that follow


def poison(model: Any, method: str, error: Exception) -> list[int]:
    """A method fails where one picture is among what it is given; the numbers it was given."""
    inner, given = getattr(model, method), []

    def guarded(values: Any, *args: Any, **settings: Any) -> Any:
        given.append(len(values))
        if any(round(float(torch.as_tensor(value).float().mean())) == 40 for value in values):
            raise error
        return inner(values, *args, **settings)

    setattr(model, method, guarded)
    return given


@pytest.mark.parametrize("error", ERRORS, ids=["device", "host"])
@pytest.mark.parametrize(
    ("method", "role", "status"),
    [
        ("see", "captioner", "too_large"),
        ("caption", "captioner", "too_large"),
        ("match", "filter", "failed_score"),
    ],
)
def test_a_picture_without_room_costs_its_row_alone(
    source: Path,
    tmp_path: Path,
    stub: Any,
    method: str,
    role: str,
    status: str,
    error: Exception,
) -> None:
    plain, small = stub(), stub()
    run_capfilt(source, tmp_path / "a", plain, plain, WHOLE)
    given = poison(small, method, error)
    summary = run_capfilt(source, tmp_path / "b", small, small, WHOLE)
    assert summary.complete and summary.stats["status_dict"][status] == 1
    before, after = ({r["key"]: r for r in read_rows(tmp_path / x)} for x in "ab")
    row, other = after.pop(POISON), before.pop(POISON)
    assert after == before
    assert row["status"] == status
    assert row["error_message"] == (
        f"no room for it alone in the {role} stub: {type(error).__name__}: {error}"
    )
    texts = [c["text"] for c in other["candidates"]]  # what there was before is still there
    assert [c["text"] for c in row["candidates"]] == texts[: 2 if role == "filter" else 1]
    assert {(c["status"], c["kept"]) for c in row["candidates"]} == {("failed_score", False)}
    tried = len(given)
    run_capfilt(source, tmp_path / "c", small, small, WHOLE)
    assert given[tried] == given[0] == 6, "one picture's fault made the batches smaller for good"


def test_a_picture_whose_captions_have_no_room(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop that writes gives it back without texts, and does not raise."""
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocabulary()) + "\n")
    tokenizer = Tokenizer.read(tmp_path / "vocab.txt")
    model = Blip(random_med("pretrain", 1), tokenizer, "it", "it", True, ImageOptions(size=32))
    options = CapFiltOptions(batch_size=4, max_length=12, min_length=5)
    run_capfilt(source, tmp_path / "a", model, model, options)
    advance, seed = Slots.advance, stable_seed(POISON, options.seed)

    def poisoned(self: Slots, requests: Sequence[Request]) -> Any:
        if any(request.seed == seed for request in requests):
            raise torch.OutOfMemoryError("no room for its words")
        return advance(self, requests)

    monkeypatch.setattr(Slots, "advance", poisoned)
    run_capfilt(source, tmp_path / "b", model, model, options)
    before, after = ({r["key"]: r for r in read_rows(tmp_path / x)} for x in "ab")
    row = after.pop(POISON)
    del before[POISON]
    for key, expected in before.items():  # in other batches, so the last bits may differ
        found = after[key]
        assert (found["status"], found["error_message"]) == (
            expected["status"],
            expected["error_message"],
        )
        for text, other in zip(found["candidates"], expected["candidates"], strict=True):
            assert (text["text"], text["status"]) == (other["text"], other["status"])
            assert text["itm_probability"] == pytest.approx(other["itm_probability"], abs=1e-5)
    assert row["status"] == "too_large" and "no room for its words" in row["error_message"]
    assert [(c["source"], c["status"]) for c in row["candidates"]] == [("web", "failed_score")]


def test_a_device_that_is_full_is_no_pictures_fault(
    source: Path, tmp_path: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without scores would be there for good; the run stops, and goes on later."""
    monkeypatch.setattr("blip_fast.capfilt.room._IN_A_ROW", 4)
    model = stub()

    def full(pixels: torch.Tensor, batch_size: int | None = None) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.see = full
    with pytest.raises(StageFailed, match="4 pictures one after the other did not fit alone in"):
        run_capfilt(source, tmp_path / "out", model, model, WHOLE)
    assert committed(tmp_path / "out") == []
    calm = stub()
    assert run_capfilt(source, tmp_path / "out", calm, calm, WHOLE).successes == 6
