"""The choice of tokens, against transformers' own processors where it has them, and every
implementation against the rule written out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from forcing import ISAS, Recorder, forced_path, needs_native, threads
from oracles import draw
from torch import Tensor

from blip_fast import kernels
from blip_fast.kernels.sample import reference

END = 3
ALMOST_ONE = 1 - 2**-24


@pytest.fixture(params=["reference", *ISAS])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then the compiled room with one instruction set after the other."""
    with forced_path(request.param, "sample"):
        yield request.param


ROWS = {
    "random": torch.randn(64, generator=torch.Generator().manual_seed(1)) * 3,
    "long": torch.randn(1000, generator=torch.Generator().manual_seed(2)) * 2,
    "ties": torch.randint(-2, 3, (777,), generator=torch.Generator().manual_seed(3)).float(),
    "all equal": torch.full((130,), -7.5),
    "one token": torch.tensor([0.3]),
    "one allowed": torch.tensor([-math.inf, -math.inf, 2.0, -math.inf]),
    "some forbidden": torch.tensor([-math.inf, 1.0, -math.inf, 1.0, 0.5] * 20),
    "none allowed": torch.full((70,), -math.inf),
    "both zeros": torch.tensor([-0.0, 0.0, -1.0, 0.0, -0.0]),
    "far apart": torch.tensor([3e38, -3e38, 1.0, 3e38]),
    "rising": torch.arange(300.0) / 10,
}


@pytest.mark.parametrize("name", ROWS)
def test_tokens_are_those_of_the_rule(implementation: str, name: str) -> None:
    row = ROWS[name]
    numbers = [0.0, 2**-24, 0.1, 0.37, 0.5, 0.75, 0.93, 0.999, ALMOST_ONE]
    logits, uniform = row.repeat(len(numbers), 1), torch.tensor(numbers)
    for top_k in (0, 1, 3, 50, len(row), len(row) + 5):
        for top_p in (1.0, 0.9, 0.5, 1e-9):
            for temperature in (1.0, 0.3, 5.0):
                settings = (temperature, top_k, top_p)
                tokens = kernels.sample(logits, uniform, *settings).tolist()
                expected = [draw(row.tolist(), u, *settings) for u in uniform.tolist()]
                assert tokens == expected, f"top-k {top_k}, top-p {top_p}, {temperature}"


@pytest.mark.parametrize("top_k", [0, 50, 30523])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_a_whole_vocabulary(implementation: str, top_k: int, spread: float) -> None:
    logits = torch.randn(2, 30524) * spread
    uniform = torch.tensor([0.3, ALMOST_ONE])
    for top_p in (0.9, 1.0):
        tokens = kernels.sample(logits, uniform, 0.7, top_k, top_p).tolist()
        expected = [
            draw(row.tolist(), u, 0.7, top_k, top_p)
            for row, u in zip(logits, uniform.tolist(), strict=True)
        ]
        assert tokens == expected


def test_no_rows_and_other_layouts(implementation: str) -> None:
    assert kernels.sample(torch.zeros(0, 9), torch.zeros(0), 1.0, 0, 0.9).shape == (0,)
    logits, uniform = torch.randn(9, 5).t(), torch.rand(10)[::2]
    expected = [
        draw(r.tolist(), u, 1.0, 4, 0.9) for r, u in zip(logits, uniform.tolist(), strict=True)
    ]
    assert kernels.sample(logits, uniform, 1.0, 4, 0.9).tolist() == expected


def test_nan_gives_some_token_and_harms_no_neighbour(implementation: str) -> None:
    logits = torch.randn(3, 100)
    expected = kernels.sample(logits, torch.full((3,), 0.4), 1.0, 0, 0.9)
    logits[1] = torch.nan
    for top_k, top_p in ((0, 0.9), (5, 0.9), (0, 1.0)):
        tokens = kernels.sample(logits, torch.full((3,), 0.4), 1.0, top_k, top_p)
        assert 0 <= tokens[1] < 100
    actual = kernels.sample(logits, torch.full((3,), 0.4), 1.0, 0, 0.9)
    assert actual[[0, 2]].tolist() == expected[[0, 2]].tolist()


@pytest.mark.parametrize("min_length", [0, 4])
@pytest.mark.parametrize("penalty", [1.0, 1.1, 0.8])
def test_penalties_are_those_of_transformers(penalty: float, min_length: int) -> None:
    logits_process = pytest.importorskip(
        "transformers.generation.logits_process", reason="transformers is not installed"
    )
    scores = torch.randn(3, 10) * 3
    tokens = torch.tensor([[5, 1, 5, 7, 2], [9, 0, 0, 0, 0], [4, 8, 6, 0, 0]])
    lengths = torch.tensor([5, 1, 3])
    before = scores.clone()
    actual = kernels.penalise(scores, tokens, lengths, penalty, min_length, end_id=END)
    assert torch.equal(scores, before)
    for row in range(3):
        held = tokens[row : row + 1, : lengths[row]]
        expected = scores[row : row + 1].clone()
        for processor in (
            logits_process.RepetitionPenaltyLogitsProcessor(penalty=penalty),
            logits_process.MinLengthLogitsProcessor(min_length, END),
        ):
            expected = processor(held, expected)
        torch.testing.assert_close(actual[row : row + 1], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 0.9, 1.0), (4, 0.7, 0.5), (4, 1.0, 2.0)]
)
def test_samples_follow_the_filtered_distribution(
    top_k: int, top_p: float, temperature: float
) -> None:
    logits_process = pytest.importorskip(
        "transformers.generation.logits_process", reason="transformers is not installed"
    )
    logits = torch.randn(1, 12)
    expected = logits / temperature
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(None, expected)
    expected = logits_process.TopPLogitsWarper(top_p)(None, expected).softmax(1)[0]

    # Evenly spread numbers hit each token in proportion to its probability, without chance.
    draws = 20_000
    uniform = (torch.arange(draws) + 0.5) / draws
    tokens = kernels.sample(logits.expand(draws, -1), uniform, temperature, top_k, top_p)
    frequency = torch.bincount(tokens, minlength=12) / draws
    torch.testing.assert_close(frequency, expected, rtol=0, atol=2 / draws)


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0]])
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-24])
    tokens = kernels.sample(logits.expand(5, -1), uniform, 1.0, 0, 1.0)
    assert 1 not in tokens.tolist()


def test_beam_step_ranks_all_continuations_of_an_image(implementation: str) -> None:
    log_probs, scores = torch.randn(2 * 3, 7).log_softmax(1), torch.randn(2, 3)
    best, beam, token = kernels.beam_step(log_probs, scores, keep=6)
    for image in range(2):
        ranked = sorted(
            ((log_probs[3 * image + b, t] + scores[image, b]).item(), b, t)
            for b in range(3)
            for t in range(7)
        )[::-1][:6]
        assert [(b, t) for _, b, t in ranked] == list(
            zip(beam[image].tolist(), token[image].tolist(), strict=True)
        )
        assert best[image].tolist() == [score for score, _, _ in ranked]


@pytest.mark.parametrize(
    ("images", "beams", "vocabulary", "keep"),
    [(1, 1, 1, 1), (2, 3, 30524, 6), (3, 2, 65, 130), (2, 4, 700, 300)],
)
def test_beam_step_equals_a_full_sort(
    implementation: str, images: int, beams: int, vocabulary: int, keep: int
) -> None:
    log_probs = torch.randn(images * beams, vocabulary).log_softmax(1)
    log_probs[:, ::7] = -torch.inf
    scores = torch.randn(images, beams)
    best, beam, token = kernels.beam_step(log_probs, scores, keep)
    total = (log_probs.view(images, beams, -1) + scores[:, :, None]).flatten(1)
    ranked = total.sort(dim=1, descending=True).values[:, :keep]
    torch.testing.assert_close(best, ranked, rtol=0, atol=0)
    place = beam * vocabulary + token
    torch.testing.assert_close(total.gather(1, place), best, rtol=0, atol=0)
    assert all(len(set(row)) == keep for row in place.tolist())


@needs_native
def test_beam_step_prefers_the_lower_beam_and_token_among_equals() -> None:
    with kernels.use("native", "sample"):
        best, beam, token = kernels.beam_step(torch.zeros(2, 200), torch.zeros(1, 2), 203)
    assert best.eq(0).all()
    assert (beam * 200 + token).tolist() == [list(range(203))]


@needs_native
def test_nan_beams_rank_behind_all_others() -> None:
    log_probs = torch.full((2, 50), torch.nan)
    log_probs[1, 4] = -1.0
    with kernels.use("native", "sample"):
        best, beam, token = kernels.beam_step(log_probs, torch.zeros(1, 2), 2)
    assert (beam[0, 0], token[0, 0], best[0, 0]) == (1, 4, -1.0)
    assert best[0, 1].isnan()


@needs_native
def test_operators_are_sound_and_compile_whole() -> None:
    logits, uniform, scores = torch.randn(6, 300), torch.rand(6), torch.randn(2, 3)
    ops = torch.ops.blip_fast
    torch.library.opcheck(ops.sample.native, (logits, uniform, 0.8, 5, 0.9))
    torch.library.opcheck(ops.beam_step.native, (logits, scores, 6))

    def step(logits: Tensor, uniform: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        tokens, lengths = torch.zeros(6, 4, dtype=torch.int64), torch.full((6,), 2)
        allowed = kernels.penalise(logits, tokens, lengths, 1.2, 5, END)
        chosen = kernels.sample(allowed, uniform, 0.8, 0, 0.9)
        return chosen, *kernels.beam_step(allowed.log_softmax(1), scores, 6)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for implementation in ("native", "reference"):
        with kernels.use(implementation, "sample"):
            expected = step(logits, uniform, scores)
            torch.testing.assert_close(compiled(logits, uniform, scores), expected)


@needs_native
def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    expected = ["blip_fast.sample.native", "blip_fast.beam_step.native"]
    for implementation, operators in (("native", expected), ("reference", [])):
        with kernels.use(implementation, "sample"), Recorder() as recorder:
            kernels.sample(torch.zeros(1, 4), torch.zeros(1), 1.0, 2, 0.9)
            kernels.beam_step(torch.zeros(2, 4), torch.zeros(1, 2), 2)
        assert recorder.names == operators
    with kernels.use("native", "sample"), pytest.raises(ValueError, match="not float64"):
        kernels.sample(torch.zeros(1, 4).double(), torch.zeros(1), 1.0, 2, 0.9)


def test_other_dtypes_go_to_the_reference() -> None:
    logits, uniform = torch.randn(3, 40).double(), torch.rand(3)
    tokens = kernels.sample(logits, uniform, 1.0, 5, 0.9)
    assert tokens.equal(reference.sample(logits, uniform, 1.0, 5, 0.9))


@needs_native
def test_two_runs_and_any_number_of_threads_are_equal() -> None:
    logits, uniform = torch.randn(9, 30524), torch.rand(9)
    first = kernels.sample(logits, uniform, 1.0, 0, 0.9)
    with threads(1):
        second = kernels.sample(logits, uniform, 1.0, 0, 0.9)
    assert first.equal(second)


def test_beam_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="a row for each of the scores"):
        kernels.beam_step(torch.zeros(5, 4), torch.zeros(2, 3), 6)
    with pytest.raises(ValueError, match="at least the 9 to keep"):
        kernels.beam_step(torch.zeros(2, 4), torch.zeros(1, 2), 9)


@pytest.mark.parametrize(
    "setting", [(0.0, 0, 0.9), (torch.inf, 0, 0.9), (1.0, -1, 0.9), (1.0, 0, 0.0), (1.0, 0, 1.5)]
)
def test_settings_are_checked(setting: tuple[float, int, float]) -> None:
    with pytest.raises(ValueError, match="temperature"):
        kernels.sample(torch.zeros(1, 4), torch.zeros(1), *setting)
