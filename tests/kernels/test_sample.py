"""The choice of tokens, against transformers' own processors where it has them."""

from __future__ import annotations

import pytest
import torch

from blip_fast import kernels

END = 3


@pytest.mark.parametrize("penalty", [1.0, 1.1, 0.8])
def test_penalties_are_those_of_transformers(penalty: float) -> None:
    logits_process = pytest.importorskip(
        "transformers.generation.logits_process", reason="transformers is not installed"
    )
    scores = torch.randn(3, 10) * 3
    tokens = torch.tensor([[5, 1, 5, 7, 2], [9, 0, 0, 0, 0], [4, 8, 6, 0, 0]])
    lengths = torch.tensor([5, 1, 3])
    actual = kernels.penalise(scores, tokens, lengths, penalty, min_length=4, end_id=END)
    for row in range(3):
        held = tokens[row : row + 1, : lengths[row]]
        expected = scores[row : row + 1].clone()
        for processor in (
            logits_process.RepetitionPenaltyLogitsProcessor(penalty=penalty),
            logits_process.MinLengthLogitsProcessor(4, END),
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


def test_beam_step_ranks_all_continuations_of_an_image() -> None:
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


@pytest.mark.parametrize("setting", [(0.0, 0, 0.9), (1.0, -1, 0.9), (1.0, 0, 0.0), (1.0, 0, 1.5)])
def test_settings_are_checked(setting: tuple[float, int, float]) -> None:
    with pytest.raises(ValueError, match="temperature"):
        kernels.sample(torch.zeros(1, 4), torch.zeros(1), *setting)
