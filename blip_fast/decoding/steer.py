"""What changes the scores of the next token before one is chosen: penalties, forbidden phrases."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast import kernels
from blip_fast.decoding.options import SearchOptions

_NOTHING = -1  # no token


class Steering:
    """The settings of a search that act on scores, in the order of transformers' processors."""

    def __init__(self, options: SearchOptions, end_id: int, device: torch.device) -> None:
        self.options, self.end_id = options, end_id
        self.phrases = ForbiddenPhrases(options.forbidden, device) if options.forbidden else None

    def __call__(self, scores: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, V] of what follows the first `lengths` [B] of `tokens` [B, P] -> [B, V]."""
        options = self.options
        scores = kernels.penalise(
            scores, tokens, lengths, options.penalty, options.min_length, self.end_id
        )
        return scores if self.phrases is None else self.phrases(scores, tokens, lengths)


class ForbiddenPhrases:
    """Token sequences that are never written, as by transformers' NoBadWordsLogitsProcessor.

    Args:
        phrases: F of them, none empty.
    """

    def __init__(self, phrases: tuple[tuple[int, ...], ...], device: torch.device) -> None:
        longest = max(len(phrase) for phrase in phrases) - 1
        beginnings = [[_NOTHING] * (longest + 1 - len(p)) + list(p[:-1]) for p in phrases]
        # [F, L]: all but the last token of each, at the end of its row; a blank fits everything.
        self.beginnings = torch.tensor(beginnings, dtype=torch.int64, device=device)
        self.blank = self.beginnings == _NOTHING
        self.last = torch.tensor([phrase[-1] for phrase in phrases], device=device)

    def __call__(self, scores: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """As `Steering`; -inf where a token would end a phrase."""
        back = torch.arange(-self.beginnings.shape[1], 0, device=tokens.device)
        places = lengths[:, None] + back  # [B, L]
        recent = tokens.gather(1, places.clamp(min=0)).masked_fill(places < 0, _NOTHING)
        fits = (recent[:, None] == self.beginnings) | self.blank  # [B, F, L]
        # Added, not written: several phrases may end with one token.
        bias = torch.where(fits.all(2), -torch.inf, 0.0).to(scores.dtype)
        return scores.scatter_add(1, self.last.expand(len(scores), -1), bias)
