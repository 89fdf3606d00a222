"""Ranking of answers, against the reference's algorithm on one question and candidate at a time."""

from __future__ import annotations

import pytest
import torch
from factories import random_med

from blip_fast.decoding import rank
from blip_fast.decoding.rank import Candidates, rank_candidates
from blip_fast.med.blip import MED
from blip_fast.text import pack

DEC, ENC, SEP = 126, 127, 102
CANDIDATES = [
    [DEC, *body, SEP] for body in ([5], [6, 7], [5, 9], [8, 9, 10, 11], [6], [20], [7, 7])
]


@pytest.mark.parametrize("k", [1, 3, 7, 100])
@pytest.mark.parametrize("rows_per_call", [6, 512])
def test_winners_are_the_references(
    monkeypatch: pytest.MonkeyPatch, k: int, rows_per_call: int
) -> None:
    monkeypatch.setattr(rank, "_ROWS_PER_CALL", rows_per_call)
    model = random_med("vqa", seed=3)
    images = model.see(torch.randn(4, 3, 32, 32))
    questions = pack([[ENC, 30, SEP], [ENC, 31, 32, 33, SEP], [ENC, 34, 35, SEP], [ENC, SEP]])
    memory = model.ask(questions, images, torch.arange(4))
    ranked = rank_candidates(model, memory, Candidates.of(CANDIDATES), k)
    for n, ours in enumerate(ranked):
        one = torch.tensor([n])
        first = [-model.losses(pack([c[:2]]), memory, one)[1].item() for c in CANDIDATES]
        shortlist = sorted(range(len(CANDIDATES)), key=lambda c: -first[c])[:k]
        score = {
            c: -model.losses(pack([CANDIDATES[c]]), memory, one, 0.1).sum().item()
            for c in shortlist
        }
        best = max(shortlist, key=score.__getitem__)
        assert ours.candidate == best
        assert ours.score == pytest.approx(score[best], rel=1e-4)
        plain = -model.losses(pack([CANDIDATES[best]]), memory, one)[1:]
        torch.testing.assert_close(
            torch.tensor(ours.token_log_probabilities), plain, rtol=1e-4, atol=1e-4
        )


def test_shared_beginnings_are_run_once_and_no_logits_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_med("vqa", seed=3)
    images = model.see(torch.randn(2, 3, 32, 32))
    questions = pack([[ENC, 30, SEP], [ENC, 31, 32, 33, SEP]])
    memory = model.ask(questions, images, torch.arange(2))
    rows, write = [], MED.write

    def counted(self, ids, positions, past, grounding):
        rows.append(len(ids))
        return write(self, ids, positions, past, grounding)

    def refused(self, states):
        raise AssertionError("logits of the whole vocabulary")

    monkeypatch.setattr(MED, "write", counted)
    monkeypatch.setattr(MED, "next_logits", refused)
    rank_candidates(model, memory, Candidates.of(CANDIDATES), len(CANDIDATES))
    # [DEC]; 5, 6, 8, 20, 7; 6 7, 5 9, 8 9, 7 7; 8 9 10; 8 9 10 11: each for two questions.
    assert rows == [2, 10, 8, 2, 2]


def test_candidates_need_a_token() -> None:
    with pytest.raises(ValueError, match=r"candidate 1 is \[126\]; it needs two tokens"):
        Candidates.of([[DEC, 5, SEP], [DEC]])
