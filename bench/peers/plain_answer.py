"""VQA by ranking as BLIP's authors' `rank_answer` has it, in plain PyTorch.

One step from [DEC] gives the probability of every candidate's first token; the k likeliest
candidates are run whole, padded to the longest of the list, each beside its own copy of the
question's states, whose keys and values are projected anew for every copy; logits of every place
are stored. On a state dict with transformers' names.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

HEAD_WIDTH = 64
PAD = 0
IGNORE = -100
LABEL_SMOOTHING = 0.1
_OUT = -10000.0


def rank_answers(
    state: State, questions: Tensor, question_mask: Tensor, answers: Tensor, k: int
) -> Tensor:
    """The best answer of each question.

    Args:
        questions: [Q, L, W], states of the questions, padded.
        question_mask: [Q, L], 1 where there is a token.
        answers: [A, T] int64, [DEC] first, [SEP] last, padded with 0.

    Returns:
        [Q] int64.
    """
    number, width = questions.shape[0], questions.shape[-1]
    start = answers[:1, :1].repeat(number, 1)
    logits = decode(state, start, torch.ones_like(start), questions, question_mask)[:, 0]
    first = logits.float().softmax(1).index_select(1, answers[:, 1])
    _, chosen = first.topk(k, dim=1)

    ids = torch.cat([answers.index_select(0, row) for row in chosen])
    mask = (ids != PAD).long()
    targets = ids.masked_fill(ids == PAD, IGNORE)
    states = questions.repeat_interleave(k, 0).view(number * k, -1, width)
    states_mask = question_mask.repeat_interleave(k, 0)
    logits = decode(state, ids, mask, states, states_mask)
    shifted = logits[:, :-1].contiguous().float()
    losses = F.cross_entropy(
        shifted.view(-1, shifted.shape[-1]),
        targets[:, 1:].contiguous().view(-1),
        reduction="none",
        label_smoothing=LABEL_SMOOTHING,
        ignore_index=IGNORE,
    )
    scores = -losses.view(len(ids), -1).sum(1).view(number, k)
    return chosen.gather(1, scores.argmax(1, keepdim=True))[:, 0]


def decode(state: State, ids: Tensor, mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
    """Logits [N, T, V] of the text decoder over padded texts and padded states."""
    bert, length = "text_decoder.bert", ids.shape[1]
    place = f"{bert}.embeddings"
    x = state[f"{place}.word_embeddings.weight"][ids]
    x = x + state[f"{place}.position_embeddings.weight"][:length]
    x = _norm(state, f"{place}.LayerNorm", x)
    causal = torch.ones(length, length, dtype=x.dtype).tril()
    own = (1 - causal * mask[:, None, None, :].to(x.dtype)) * _OUT
    other = (1 - states_mask[:, None, None, :].to(x.dtype)) * _OUT
    depth = sum(name.endswith("crossattention.self.query.weight") for name in state
                if name.startswith(f"{bert}."))  # fmt: skip
    for number in range(depth):
        layer = f"{bert}.encoder.layer.{number}"
        x = _attention(state, f"{layer}.attention", x, x, own)
        x = _attention(state, f"{layer}.crossattention", x, states, other)
        inner = F.gelu(_linear(state, f"{layer}.intermediate.dense", x))
        inner = _linear(state, f"{layer}.output.dense", inner)
        x = _norm(state, f"{layer}.output.LayerNorm", inner + x)
    head = "text_decoder.cls.predictions"
    x = F.gelu(_linear(state, f"{head}.transform.dense", x))
    x = _norm(state, f"{head}.transform.LayerNorm", x)
    return F.linear(x, state[f"{place}.word_embeddings.weight"], state[f"{head}.bias"])


def _attention(state: State, name: str, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    q = _heads(_linear(state, f"{name}.self.query", x))
    k = _heads(_linear(state, f"{name}.self.key", source))
    v = _heads(_linear(state, f"{name}.self.value", source))
    scores = q @ k.transpose(-1, -2) / HEAD_WIDTH**0.5 + mask
    seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    seen = _linear(state, f"{name}.output.dense", seen)
    return _norm(state, f"{name}.output.LayerNorm", seen + x)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-12)
