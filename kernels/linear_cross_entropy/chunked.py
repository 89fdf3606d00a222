"""Cross-entropy of a linear head a part of the vocabulary at a time.

No more logits exist at once than those of one block of tokens and one of the vocabulary; the
backward pass computes them again. Both passes take a fixed path, so two runs are bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from blip_fast.kernels.linear_cross_entropy.reference import IGNORE

# A block's fp32 logits: 4 MB at most, so that the passes over them stay in a cache.
TOKENS = 512
VOCABULARY = 2048


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """[T, K] -> losses [T] float32, 0 where ignored, and logsumexp of the logits [T] float32."""
    check_targets(targets, weight.shape[0])
    vocabulary = weight.shape[0]
    losses, logsumexps = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))
    for t in blocks(hidden.shape[0], TOKENS):
        # Finite, so that a block of -inf alone changes nothing.
        most = losses.new_full((len(targets[t]),), torch.finfo(torch.float32).min)
        total, at_target, below = (torch.zeros_like(most) for _ in range(3))
        for v in blocks(vocabulary, VOCABULARY):
            logits = F.linear(hidden[t], weight[v], bias[v]).float()
            inside, place = _place(targets[t], v)
            at_target = torch.where(inside, logits.gather(1, place)[:, 0], at_target)
            before, most = most, torch.maximum(most, logits.amax(1))
            logits = logits.sub_(most[:, None])
            if label_smoothing:  # the sum of all logits, each less `most`
                below += v.start * (before - most) + logits.sum(1)
            total = total * (before - most).exp() + logits.exp_().sum(1)
        logsumexps[t] = most + total.log()
        expected = (1 - label_smoothing) * (at_target - most) + label_smoothing / vocabulary * below
        losses[t] = (total.log() - expected).masked_fill(targets[t] == IGNORE, 0)
    return losses, logsumexps


def linear_cross_entropy_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    logsumexp: Tensor,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias from that of the losses [T].

    The logits' is grad * (softmax - y), y the smoothed target; rounded to hidden's dtype, it goes
    through two products. Sums over blocks are fp32; with one block of tokens the weight's gradient
    is the product itself, written in place: memory touched for the first time costs as much as
    half a product.
    """
    vocabulary = weight.shape[0]
    grad = grad.float().masked_fill(targets == IGNORE, 0)
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    token_blocks = list(blocks(hidden.shape[0], TOKENS)) or [slice(0, 0)]
    several = len(token_blocks) > 1
    sums = torch.empty_like(weight[:VOCABULARY], dtype=torch.float32) if several else grad_weight
    for v in blocks(vocabulary, VOCABULARY):
        of_weight = sums[: v.stop - v.start].zero_() if several else grad_weight[v]
        of_bias = torch.zeros_like(bias[v], dtype=torch.float32)
        for t in token_blocks:
            logits = F.linear(hidden[t], weight[v], bias[v]).float()
            y = logits.sub_(logsumexp[t, None]).exp_()  # the softmax, and soon the gradient
            if label_smoothing:
                y -= label_smoothing / vocabulary
            inside, place = _place(targets[t], v)
            y.scatter_add_(1, place, ((label_smoothing - 1) * inside.float())[:, None])
            y *= grad[t, None]
            of_bias += y.sum(0)
            of_logits = y.to(hidden.dtype)
            grad_hidden[t] += of_logits @ weight[v]
            if several:
                of_weight += of_logits.T @ hidden[t]
            else:
                torch.mm(of_logits.T, hidden[t], out=of_weight)
        grad_bias[v] = of_bias
        if several:
            grad_weight[v] = of_weight
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def blocks(length: int, size: int) -> Iterator[slice]:
    """0 to `length` in slices of `size`; the last may be shorter."""
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))


def _place(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Whether each target is in a block of the vocabulary, [T], and where, [T, 1]."""
    place = targets - block.start
    inside = (place >= 0) & (targets < block.stop)
    return inside, place.clamp(0, block.stop - block.start - 1)[:, None]


def check_targets(targets: Tensor, vocabulary: int) -> None:
    """Refuse targets that are no tokens, without waiting for a device."""
    known = (targets == IGNORE) | ((targets >= 0) & (targets < vocabulary))
    torch._assert_async(known.all(), f"a target is neither in 0..{vocabulary - 1} nor {IGNORE}")
