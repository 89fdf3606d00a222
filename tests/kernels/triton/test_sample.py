"""The choice of tokens in Triton: token for token what the rule says."""

from __future__ import annotations

import math

import pytest
import torch
from forcing import Recorder
from oracles import draw
from torch import Tensor

from blip_fast import kernels
from blip_fast.kernels.sample import config, reference, triton

INF = math.inf
NUMBERS = (0.0, 2**-24, 0.1, 0.5, 0.93, 1 - 2**-24)
ROWS = {
    "random": [math.sin(7 * i) * 5 for i in range(64)],
    "ties": [(i * i % 7) / 2.0 for i in range(77)],
    "all equal": [-7.5] * 130,
    "one token": [0.3],
    "one allowed": [-INF, -INF, 2.0, -INF],
    "some forbidden": [-INF, 1.0, -INF, 1.0, 0.5] * 20,
    "none allowed": [-INF] * 70,
    "both zeros": [-0.0, 0.0, -1.0, 0.0, -0.0],
    "far apart": [3e38, -3e38, 1.0, 3e38],
}


@pytest.fixture(autouse=True)
def _asked_for():
    with kernels.use("triton", "sample"):
        yield


@pytest.mark.parametrize("top_k", [0, 1, 3, 50, 1000])
@pytest.mark.parametrize("name", ROWS)
def test_tokens_are_those_of_the_rule(name: str, top_k: int) -> None:
    logits, uniform = torch.tensor([ROWS[name]] * len(NUMBERS)), torch.tensor(NUMBERS)
    row, numbers = logits[0].tolist(), uniform.tolist()
    for top_p, heat in ((1.0, 1.0), (0.9, 0.3), (0.5, 5.0), (1e-9, 1.0)):
        with Recorder() as recorder:
            tokens = kernels.sample(logits, uniform, heat, top_k, top_p)
        assert recorder.names == ["blip_fast.sample.triton"]
        expected = [draw(row, u, heat, top_k, top_p) for u in numbers]
        assert tokens.tolist() == expected, f"top-k {top_k}, top-p {top_p}, {heat}"


@pytest.mark.parametrize("top_k", [0, 50])
def test_several_parts_and_tiles(top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PART", 64)
    monkeypatch.setattr(config, "MERGED", 256)
    monkeypatch.setitem(config.DRAW, "TILE", 16)
    logits, uniform = torch.randn(4, 700) * 2, torch.tensor([0.0, 0.4, 0.95, 1 - 2**-24])
    for top_p in (1.0, 0.9):
        tokens = kernels.sample(logits, uniform, 0.7, top_k, top_p).tolist()
        rows = zip(logits.tolist(), uniform.tolist(), strict=True)
        assert tokens == [draw(row, u, 0.7, top_k, top_p) for row, u in rows]


def test_no_rows_other_layouts_and_nan() -> None:
    assert kernels.sample(torch.zeros(0, 9), torch.zeros(0), 1.0, 0, 0.9).shape == (0,)
    logits, uniform = torch.randn(9, 5).t(), torch.rand(10)[::2]
    expected = kernels.sample(logits.contiguous(), uniform.contiguous(), 1.0, 4, 0.9)
    assert kernels.sample(logits, uniform, 1.0, 4, 0.9).equal(expected)
    scores = torch.randn(5, 2)[:, :1]  # of beams
    dense = kernels.beam_step(logits.contiguous(), scores.contiguous(), 3)
    for strided, same in zip(kernels.beam_step(logits, scores, 3), dense, strict=True):
        assert strided.equal(same)
    tokens, lengths = torch.randint(9, (4, 5)).t(), torch.tensor([1, 9, 4, 9, 2, 9, 3, 9, 4])[::2]
    penalised = kernels.penalise(logits, tokens, lengths, 1.1, 2, 3)
    assert penalised.equal(reference.penalise(logits, tokens, lengths, 1.1, 2, 3))
    logits = logits.contiguous()
    logits[1] = torch.nan
    for top_k, top_p in ((0, 0.9), (4, 0.9), (0, 1.0)):
        assert 0 <= kernels.sample(logits, uniform, 1.0, top_k, top_p)[1] < 9
    others = [0, 2, 3, 4]
    assert kernels.sample(logits, uniform, 1.0, 4, 0.9)[others].equal(expected[others])


@pytest.mark.parametrize(
    ("images", "beams", "vocabulary", "keep"),
    [(1, 1, 1, 1), (2, 3, 5000, 6), (3, 2, 65, 130), (2, 4, 700, 300), (2, 3, 1, 3)],
)
def test_beam_step_equals_a_full_sort(images: int, beams: int, vocabulary: int, keep: int) -> None:
    log_probs = torch.randn(images * beams, vocabulary).log_softmax(1)
    log_probs[:, ::7] = -torch.inf
    scores = torch.randn(images, beams)
    best, beam, token = kernels.beam_step(log_probs, scores, keep)
    total = (log_probs.view(images, beams, -1) + scores[:, :, None]).flatten(1)
    assert best.equal(total.sort(dim=1, descending=True).values[:, :keep])
    place = beam * vocabulary + token
    assert total.gather(1, place).equal(best)
    assert all(len(set(row)) == keep for row in place.tolist())


def test_beam_step_among_equals_and_nan() -> None:
    best, beam, token = kernels.beam_step(torch.zeros(2, 200), torch.zeros(1, 2), 203)
    assert best.eq(0).all()
    assert (beam * 200 + token).tolist() == [list(range(203))]
    log_probs = torch.full((2, 50), torch.nan)
    log_probs[1, 4] = -1.0
    best, beam, token = kernels.beam_step(log_probs, torch.zeros(1, 2), 2)
    assert (beam[0, 0], token[0, 0], best[0, 0]) == (1, 4, -1.0)
    assert best[0, 1].isnan()
    assert kernels.beam_step(torch.zeros(0, 9), torch.zeros(0, 3), 6)[0].shape == (0, 6)


@pytest.mark.parametrize("min_length", [0, 4])
@pytest.mark.parametrize("penalty", [1.0, 1.1, 0.8])
def test_penalties_are_the_reference_bit_for_bit(
    penalty: float, min_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(4, 10) * 3
    scores[3, 4] = -torch.inf
    tokens = torch.tensor([[5, 1, 5, 7, 2], [9, 0, 0, 0, 0], [4, 8, 6, 0, 0], [4, 3, 3, 0, 0]])
    arguments = (scores, tokens, torch.tensor([5, 1, 3, 3]), penalty, min_length, 3)
    before = scores.clone()
    expected = reference.penalise(*arguments)
    for at_once in (128, 2):
        monkeypatch.setitem(config.HELD, "HELD", at_once)
        assert kernels.penalise(*arguments).equal(expected)
    assert scores.equal(before)


def test_operators_are_sound_and_compile_whole() -> None:
    logits, uniform, scores = torch.randn(6, 40), torch.rand(6), torch.randn(2, 3)
    tokens, lengths = torch.zeros(6, 4, dtype=torch.int64), torch.full((6,), 2)
    operators = torch.ops.blip_fast
    torch.library.opcheck(operators.sample.triton, (logits, uniform, 0.8, 5, 0.9))
    torch.library.opcheck(operators.beam_step.triton, (logits, scores, 6))
    torch.library.opcheck(operators.penalise.triton, (logits, tokens, lengths, 1.2, 5, 3))

    def step(logits: Tensor, uniform: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        allowed = kernels.penalise(logits, tokens, lengths, 1.2, 5, 3)
        chosen = kernels.sample(allowed, uniform, 0.8, 5, 0.9)
        return chosen, *kernels.beam_step(allowed.log_softmax(1), scores, 6)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, uniform, scores), step(logits, uniform, scores))


def test_the_launcher_reads_nothing_back() -> None:
    """Everything a launch needs is known on the host: no tensor becomes a number of Python's."""

    class NoReading(Recorder):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func) and "nonzero" not in str(func)
            return func(*args, **(kwargs or {}))

    logits, uniform, scores = torch.randn(6, 40), torch.rand(6), torch.randn(2, 3)
    with NoReading():
        triton.sample(logits, uniform, 0.8, 5, 0.9)
        triton.sample(logits, uniform, 0.8, 0, 0.9)
        triton.beam_step(logits, scores, 6)
        triton.penalise(logits, torch.zeros(6, 4).long(), torch.full((6,), 2), 1.2, 5, 3)
