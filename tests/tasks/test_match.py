"""Matching in one pass equals the plain path, whatever the order, the batch and the budget."""

from __future__ import annotations

import weakref

import pytest
import torch
from factories import random_med, tiny_vocabulary
from torch import Tensor

from blip_fast.images import ImageOptions
from blip_fast.med import blip as med
from blip_fast.med.blip import MED
from blip_fast.med.vision import VisionTransformer
from blip_fast.tasks.model import Blip
from blip_fast.text import PackedText, Tokenizer, pack

EACH = 2 * 17 * 2 * 128 * 4  # bytes of a memory: layers, tokens, keys and values, width, float32
TEXTS = ["a red ball", "the dog", "two cats on a table with a small box", "", "who"]


@pytest.fixture
def model() -> Blip:
    tokenizer = Tokenizer(tiny_vocabulary())
    return Blip(random_med("retrieval"), tokenizer, "random", "", True, ImageOptions(size=32))


def plain(model: Blip, image: Tensor, text: str) -> Tensor:
    """One pair, every state of every layer computed: [2]."""
    (ids,) = model.tokenizer.encode([text], "[ENC]", 64).tolist()
    memory = model.med.see(image[None])
    states = model.med.ground(pack([ids]), memory, torch.tensor([0]))
    return model.med.itm_head(states[0])


class Live:
    """The bytes of memories that were alive when one was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self.made = 0
        alive: list[weakref.ref[Tensor]] = []
        original = med.project_memory

        def counted(*args: object) -> Tensor:
            made = original(*args)
            alive.append(weakref.ref(made))
            self.made += made.shape[1]
            self.most = max(self.most, sum(t.nbytes for ref in alive if (t := ref()) is not None))
            return made

        monkeypatch.setattr(med, "project_memory", counted)


def test_equal_to_one_pair_at_a_time(model: Blip) -> None:
    images = torch.randn(3, 3, 32, 32)
    expected = torch.stack([torch.stack([plain(model, i, t) for t in TEXTS]) for i in images])
    found = model.match(images, TEXTS, score="logits")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected[..., 1].std(dim=0) > 1e-3).all()  # images differ, so mixing them up shows


def test_the_first_states_are_those_of_all_states() -> None:
    med_model = random_med("retrieval")
    text = pack([[127, 5, 9, 7, 102], [127], [127, *range(10, 24), 102]])
    memory, index = med_model.see(torch.randn(2, 3, 32, 32)), torch.tensor([1, 0, 1])
    whole = med_model.ground(text, memory, index)[text.offsets[:-1].long()]
    torch.testing.assert_close(
        med_model.match_logits(text, memory, index), med_model.itm_head(whole)
    )


def test_order_of_images_texts_and_pairs_changes_nothing(model: Blip) -> None:
    images = torch.randn(6, 3, 32, 32)
    everything = model.match(images, TEXTS, score="logit", batch_size=2)
    rows, columns = torch.randperm(6), torch.randperm(5)
    turned = model.match(images[rows], [TEXTS[c] for c in columns], score="logit")
    torch.testing.assert_close(turned, everything[rows][:, columns], rtol=1e-4, atol=1e-5)
    pairs = torch.cartesian_prod(rows, columns)[torch.randperm(30)]
    named = model.match(images, TEXTS, pairs.tolist(), score="logit", batch_size=4)
    torch.testing.assert_close(named, everything[pairs[:, 0], pairs[:, 1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("held", [1, 2, 5])
def test_the_budget_is_kept(model: Blip, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    images, live = torch.randn(11, 3, 32, 32), Live(monkeypatch)
    expected = model.match(images, TEXTS, score="logit", memory_budget=10**9)
    assert live.most == 11 * EACH  # the bound below can be broken
    live.most = live.made = 0
    found = model.match(images, TEXTS, score="logit", memory_budget=held * EACH)
    assert 0 < live.most <= held * EACH and live.made == 11
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("held", [2, 4, 7])
def test_retrieval_keeps_it_too(model: Blip, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    images, live = torch.randn(11, 3, 32, 32), Live(monkeypatch)
    found = model.retrieve(images, TEXTS, k=3, memory_budget=held * EACH)
    assert 0 < live.most <= held * EACH // 2 and live.made == 11  # the other half is of tokens
    everything = model.retrieve(images, TEXTS, k=3)
    assert torch.equal(found.images.places, everything.images.places)


def test_images_that_no_pair_names_are_not_seen(
    model: Blip, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(monkeypatch)
    model.match(torch.randn(9, 3, 32, 32), TEXTS, [(7, 0), (2, 1), (7, 3)])
    assert live.made == 2


def test_an_unreadable_image_is_nan_and_named(model: Blip) -> None:
    images = [torch.randn(3, 32, 32), b"no image", torch.randn(3, 32, 32)]
    with pytest.warns(UserWarning, match="image 1"):
        found = model.match(images, TEXTS, [(2, 0), (1, 1), (0, 2), (1, 0)])
    assert found.isnan().tolist() == [False, True, False, True]


@pytest.mark.parametrize("call", ["match", "retrieve"])
def test_where_memory_runs_out_less_is_seen_at_once_and_one_image_is_named(
    model: Blip, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    images = torch.randn(7, 3, 32, 32)

    def scores() -> Tensor:
        if call == "match":
            return model.match(images, TEXTS[:2], batch_size=4)
        found = model.retrieve(images, TEXTS[:2], k=2, batch_size=4).texts
        return found.scores

    expected, forward, tried = scores(), VisionTransformer.forward, []

    def tight(self: VisionTransformer, some: Tensor) -> Tensor:
        tried.append(len(some))
        if len(some) > 2 or (some == images[4]).all((1, 2, 3)).any():
            raise torch.OutOfMemoryError("not so many")
        return forward(self, some)

    monkeypatch.setattr(VisionTransformer, "forward", tight)
    with pytest.warns(UserWarning, match="image 4.*not so many"):
        found = scores()
    others = [0, 1, 2, 3, 5, 6]
    torch.testing.assert_close(found[others], expected[others], rtol=1e-4, atol=1e-5)
    assert not found[4].isfinite().any()
    assert tried[0] == 4 and max(tried[1:5]) <= 2


def test_less_text_is_run_at_once_where_memory_runs_out(
    model: Blip, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(3, 3, 32, 32)
    expected = model.match(images, TEXTS)
    right, tried = MED.match_logits, []

    def tight(self: MED, text: PackedText, *more: Tensor) -> Tensor:
        tried.append(len(text))
        if len(text) > 4:
            raise torch.OutOfMemoryError("too many")
        return right(self, text, *more)

    monkeypatch.setattr(MED, "match_logits", tight)
    torch.testing.assert_close(model.match(images, TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert tried[0] == 15 and max(tried[3:]) <= 4
    tried.clear()
    model.match(images, TEXTS)
    assert max(tried) <= 4, "what was learned was forgotten"
