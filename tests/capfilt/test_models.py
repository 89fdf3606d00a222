"""Several captioners and filters, and how often an image is looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import random_med, tiny_vocabulary

from blip_fast.capfilt import CapFiltOptions, read_rows, run_capfilt
from blip_fast.capfilt.models import Models
from blip_fast.config import Kind
from blip_fast.images import ImageOptions
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer

OPTIONS = CapFiltOptions(batch_size=3, max_length=12, min_length=5)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(tiny_vocabulary()) + "\n")
    return Tokenizer.read(path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass through a vision transformer had."""
    from blip_fast.med.vision import VisionTransformer

    calls: list[int] = []
    forward = VisionTransformer.forward

    def counted(self: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(VisionTransformer, "forward", counted)
    return calls


def blip(kind: Kind, seed: int, tokenizer: Tokenizer, eyes: Blip | None = None) -> Blip:
    """A random model, with the vision transformer of another where one is given."""
    med = random_med(kind, seed)
    if eyes is not None:
        med.vision.load_state_dict(eyes.med.vision.state_dict())
    return Blip(med, tokenizer, f"{kind} {seed}", f"{kind} {seed}", True, ImageOptions(size=32))


def test_models_with_the_same_eyes_look_once(
    source: Path, tmp_path: Path, tokenizer: Tokenizer, looks: list[int]
) -> None:
    captioner = blip("caption", 1, tokenizer)
    alike, other = blip("retrieval", 2, tokenizer, captioner), blip("retrieval", 3, tokenizer)
    run_capfilt(source, tmp_path / "shared", captioner, [alike, other], OPTIONS)
    assert sum(looks) == 2 * 6  # three models, two pairs of eyes, six pictures that can be read
    looks.clear()
    both = blip("pretrain", 4, tokenizer)
    run_capfilt(source, tmp_path / "both", both, both, OPTIONS)
    assert sum(looks) == 6


def test_shared_eyes_change_no_result(
    source: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = blip("caption", 1, tokenizer)
    filter_ = blip("retrieval", 2, tokenizer, captioner)
    run_capfilt(source, tmp_path / "shared", captioner, filter_, OPTIONS)
    monkeypatch.setattr("blip_fast.capfilt.models._see_alike", lambda one, other: False)
    run_capfilt(source, tmp_path / "apart", captioner, filter_, OPTIONS)
    assert list(read_rows(tmp_path / "shared")) == list(read_rows(tmp_path / "apart"))


def test_other_weights_dtypes_or_sizes_are_other_eyes(tokenizer: Tokenizer) -> None:
    from blip_fast.capfilt.models import _see_alike

    one = blip("retrieval", 1, tokenizer)
    assert _see_alike(one, blip("caption", 2, tokenizer, one))
    assert not _see_alike(one, blip("retrieval", 2, tokenizer))
    assert not _see_alike(one, replace(one, image_options=ImageOptions(size=64)))
    half = replace(one, med=random_med("retrieval", 1).to(torch.bfloat16))
    assert not _see_alike(one, half)
    nearly = blip("caption", 2, tokenizer, one)
    list(nearly.med.vision.parameters())[-1].data[0] += 1e-3
    assert not _see_alike(one, nearly)


def test_every_captioner_writes_and_every_filter_scores(
    source: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    captioners = [blip("caption", n, tokenizer) for n in (1, 2)]
    filters = [blip("retrieval", n, tokenizer) for n in (3, 4)]
    options = replace(OPTIONS, num_captions=2, weights=(3, 1), vote="sum")
    run_capfilt(source, tmp_path / "both", captioners, filters, options)
    rows = {row["key"]: row for row in read_rows(tmp_path / "both")}
    synthetic = [c for c in rows["a_good.png"]["candidates"] if c["source"] == "synthetic"]
    assert [c["captioner"] for c in synthetic] == [0, 0, 1, 1]
    alone = CapFiltOptions(batch_size=3, max_length=12, min_length=5, num_captions=2)
    run_capfilt(source, tmp_path / "alone", captioners[0], filters[1], alone)
    by_one = {row["key"]: row for row in read_rows(tmp_path / "alone")}
    for key, row in rows.items():
        for joined in row["candidates"]:
            if joined["itm_probability"] is None:
                continue
            first, second = (scores["itm_probability"] for scores in joined["filters"])
            assert joined["itm_probability"] == pytest.approx(0.75 * first + 0.25 * second)
            same = [c for c in by_one[key]["candidates"] if c["text"] == joined["text"]]
            assert not same or same[0]["itm_probability"] == pytest.approx(second, abs=1e-5)
        web = [c["text"] for c in row["candidates"] if c["source"] == "web"]
        assert web == [c["text"] for c in by_one[key]["candidates"] if c["source"] == "web"]


def test_what_does_not_fit_is_refused(stub: Any) -> None:
    with pytest.raises(ValueError, match="0 captioners and 1 filters"):
        Models([], [stub()], CapFiltOptions())
    with pytest.raises(ValueError, match="2 weights for 1 filters"):
        Models([stub()], [stub()], CapFiltOptions(vote="sum", weights=(1, 2)))
