"""Cross-entropy of a linear head for GPUs: logits live in registers, a tile at a time.

Forward, each program multiplies one block of tokens with a few tiles of the vocabulary and reduces
them as they come (Wijmans et al., arXiv 2411.09009): the largest logit, the sum of powers, the
target's logit, and for label smoothing the sum of all. A second kernel merges the programs'
results. Backward, the logits are computed again, block by block; their gradient is written once, in
the hidden states' dtype, for the two matrix products, which are the library's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from blip_fast.kernels.linear_cross_entropy import config
from blip_fast.kernels.linear_cross_entropy.chunked import blocks, check_targets
from blip_fast.kernels.linear_cross_entropy.reference import IGNORE

# Finite, so that its difference to any logit, -inf included, is a number.
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def _logits(
    hidden_ptr, weight_ptr, bias_ptr, token, word, words, width,
    STEP: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden[token] @ weight[word].T + bias[word], float32; -inf for a word that does not exist.

    EVEN: `width` is a multiple of STEP.
    """
    known_word = tl.minimum(word, words - 1)
    step = tl.arange(0, STEP)
    hidden_ptrs = hidden_ptr + token.to(tl.int64)[:, None] * width + step[None, :]
    weight_ptrs = weight_ptr + known_word.to(tl.int64)[None, :] * width + step[:, None]
    logits = tl.zeros([token.shape[0], word.shape[0]], tl.float32)
    for begin in range(0, width, STEP):
        if EVEN:
            hidden = tl.load(hidden_ptrs + begin)
            weight = tl.load(weight_ptrs + begin)
        else:
            inside = begin + step < width
            hidden = tl.load(hidden_ptrs + begin, mask=inside[None, :], other=0.0)
            weight = tl.load(weight_ptrs + begin, mask=inside[:, None], other=0.0)
        logits = tl.dot(hidden, weight, logits, input_precision=PRECISION)
    bias = tl.load(bias_ptr + word, mask=word < words, other=float("-inf"))
    return logits + bias.to(tl.float32)[None, :]


@triton.jit
def forward_kernel(
    hidden_ptr, weight_ptr, bias_ptr, target_ptr, partial_ptr, tokens, words, width,
    SMOOTHED: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    TILES: tl.constexpr, TOKENS: tl.constexpr, WORDS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: TOKENS tokens against TILES tiles of WORDS words, one part of the vocabulary.

    partial_ptr: [4, parts, tokens] float32: the largest logit of a part, the sum of powers of the
    logits less it, the sum of the logits less it, and the target's logit, 0 where it is elsewhere.
    """
    parts = tl.cdiv(words, TILES * WORDS)
    # GROUP blocks of tokens take turns on one part of the vocabulary before they go on to the next.
    program = tl.program_id(0)
    first_block = program // (GROUP * parts) * GROUP
    beside = tl.minimum(tl.cdiv(tokens, TOKENS) - first_block, GROUP)
    place = program % (GROUP * parts)
    part = place // beside
    token = (first_block + place % beside) * TOKENS + tl.arange(0, TOKENS)
    known_token = tl.minimum(token, tokens - 1)
    target = tl.load(target_ptr + known_token).to(tl.int32)

    most = tl.full([TOKENS], LOWEST, tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    below = tl.zeros([TOKENS], tl.float32)
    at_target = tl.zeros([TOKENS], tl.float32)
    begin = part * (TILES * WORDS)
    end = tl.minimum(begin + TILES * WORDS, words)
    for first in range(begin, end, WORDS):
        word = first + tl.arange(0, WORDS)
        logits = _logits(
            hidden_ptr, weight_ptr, bias_ptr, known_token, word, words, width, STEP, EVEN, PRECISION
        )
        at_target += tl.sum(tl.where(word[None, :] == target[:, None], logits, 0.0), axis=1)
        before = most
        most = tl.maximum(most, tl.max(logits, axis=1))
        logits -= most[:, None]
        if SMOOTHED:  # the logits so far were taken less `before`
            below += (first - begin) * (before - most)
            below += tl.sum(tl.where((word < words)[None, :], logits, 0.0), axis=1)
        total = total * tl.exp(before - most) + tl.sum(tl.exp(logits), axis=1)

    row = part * tokens + token
    size = tl.cast(parts, tl.int64) * tokens
    tl.store(partial_ptr + row, most, mask=token < tokens)
    tl.store(partial_ptr + size + row, total, mask=token < tokens)
    tl.store(partial_ptr + 2 * size + row, below, mask=token < tokens)
    tl.store(partial_ptr + 3 * size + row, at_target, mask=token < tokens)


@triton.jit
def merge_kernel(
    partial_ptr, target_ptr, loss_ptr, logsumexp_ptr, tokens, words, parts, smoothing,
    IGNORE: tl.constexpr, WORDS_OF_PART: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Losses and logsumexp of TOKENS tokens from the forward kernel's partial results."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    known = token < tokens
    size = tl.cast(parts, tl.int64) * tokens
    most = tl.full([TOKENS], LOWEST, tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    below = tl.zeros([TOKENS], tl.float32)
    at_target = tl.zeros([TOKENS], tl.float32)
    for begin in range(0, parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & known[None, :]
        row = partial_ptr + part[:, None] * tokens + token[None, :]
        before = most
        part_most = tl.load(row, mask=inside, other=LOWEST)
        most = tl.maximum(most, tl.max(part_most, axis=0))
        part_total = tl.load(row + size, mask=inside, other=0.0)
        part_total *= tl.exp(part_most - most[None, :])
        total = total * tl.exp(before - most) + tl.sum(part_total, axis=0)
        part_words = tl.minimum(words - part * WORDS_OF_PART, WORDS_OF_PART).to(tl.float32)
        part_below = tl.load(row + 2 * size, mask=inside, other=0.0)
        part_below += part_words[:, None] * (part_most - most[None, :])
        seen = tl.minimum(begin * WORDS_OF_PART, words)
        below += seen * (before - most) + tl.sum(tl.where(inside, part_below, 0.0), axis=0)
        at_target += tl.sum(tl.load(row + 3 * size, mask=inside, other=0.0), axis=0)

    # Everything less `most`, so that large logits do not cost the loss its digits.
    loss = tl.log(total) - (1 - smoothing) * (at_target - most)
    if smoothing > 0:
        loss -= smoothing / words * below
    counts = known & (tl.load(target_ptr + token, mask=known, other=IGNORE) != IGNORE)
    tl.store(loss_ptr + token, tl.where(counts, loss, 0.0), mask=known)
    tl.store(logsumexp_ptr + token, most + tl.log(total), mask=known)


@triton.jit
def backward_kernel(
    grad_ptr, hidden_ptr, weight_ptr, bias_ptr, target_ptr, logsumexp_ptr, out_ptr, partial_ptr,
    tokens, words, width, stride, first_word, smoothing, share,
    IGNORE: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    TOKENS: tl.constexpr, WORDS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of a tile of logits, grad * (softmax - y), y the smoothed target.

    weight_ptr and bias_ptr begin at word `first_word` of the vocabulary; `share` is smoothing / V.
    out_ptr: [tokens, stride], what lies behind `words` unused.
    partial_ptr: [blocks of tokens, words] float32, their sums.
    """
    block = tl.program_id(0)
    token = block * TOKENS + tl.arange(0, TOKENS)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    known_token = tl.minimum(token, tokens - 1)
    logits = _logits(
        hidden_ptr, weight_ptr, bias_ptr, known_token, word, words, width, STEP, EVEN, PRECISION
    )
    target = tl.load(target_ptr + known_token).to(tl.int32)
    grad = tl.load(grad_ptr + known_token)
    grad = tl.where((target == IGNORE) | (token >= tokens), 0.0, grad)
    y = tl.where((first_word + word)[None, :] == target[:, None], 1 - smoothing + share, share)
    of_logits = tl.exp(logits - tl.load(logsumexp_ptr + known_token)[:, None]) - y
    of_logits = grad[:, None] * of_logits

    # Up to the stride, a multiple of 64, and not up to `words`, so that vectors can be stored.
    inside = (token < tokens)[:, None] & (word < stride)[None, :]
    place = token.to(tl.int64)[:, None] * stride + word[None, :]
    tl.store(out_ptr + place, of_logits.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + block * words + word, tl.sum(of_logits, axis=0), mask=word < words)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The operator: [T, K] -> losses [T], 0 where ignored, and logsumexps [T], float32."""
    hidden, weight, bias, targets = _contiguous(hidden, weight, bias, targets)
    (tokens, width), words = hidden.shape, weight.shape[0]
    check_targets(targets, words)
    losses, logsumexps = (hidden.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    if not tokens:
        return losses, logsumexps
    tiles = config.tiles(hidden.dtype, width)
    words_of_part = config.TILES * tiles["WORDS"]
    parts = triton.cdiv(words, words_of_part)
    partial = hidden.new_empty(4, parts, tokens, dtype=torch.float32)
    forward_kernel[(triton.cdiv(tokens, tiles["TOKENS"]) * parts,)](
        hidden, weight, bias, targets, partial, tokens, words, width,
        SMOOTHED=label_smoothing > 0, GROUP=config.GROUP, TILES=config.TILES,
        **tiles, **_precision(tiles, width),
    )  # fmt: skip
    merge_kernel[(triton.cdiv(tokens, config.MERGE["TOKENS"]),)](
        partial, targets, losses, logsumexps, tokens, words, parts, label_smoothing,
        IGNORE=IGNORE, WORDS_OF_PART=words_of_part, **config.MERGE,
    )  # fmt: skip
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
    """The operator: gradients of hidden, weight and bias. Sums over blocks are fp32."""
    hidden, weight, bias, targets = _contiguous(hidden, weight, bias, targets)
    words, width = weight.shape
    grad = grad.float().contiguous()
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    tiles = config.tiles(hidden.dtype, width)
    for v in blocks(words, config.BACKWARD_WORDS):
        of_weight = torch.zeros_like(weight[v], dtype=torch.float32)
        of_bias = torch.zeros_like(bias[v], dtype=torch.float32)
        for t in blocks(len(hidden), config.BACKWARD_TOKENS):
            of_logits = _aligned_rows(hidden, len(hidden[t]), len(weight[v]))
            token_blocks = triton.cdiv(len(of_logits), tiles["TOKENS"])
            partial = of_bias.new_empty(token_blocks, len(of_bias))
            backward_kernel[(token_blocks, triton.cdiv(len(of_bias), tiles["WORDS"]))](
                grad[t], hidden[t], weight[v], bias[v], targets[t], logsumexp[t], of_logits,
                partial, *of_logits.shape, width, of_logits.stride(0), v.start, label_smoothing,
                label_smoothing / words, IGNORE=IGNORE, **tiles, **_precision(tiles, width),
            )  # fmt: skip
            of_bias += partial.sum(0)
            grad_hidden[t] += _product(of_logits, weight[v])
            of_weight += _product(of_logits.T, hidden[t])
        grad_weight[v], grad_bias[v] = of_weight, of_bias
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)


def _precision(tiles: dict[str, Any], width: int) -> dict[str, Any]:
    """Whether fp32 may go through TF32 is torch's own setting, which its matrix products follow."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return {"EVEN": width % tiles["STEP"] == 0, "PRECISION": "ieee" if exact else "tf32"}


def _aligned_rows(like: Tensor, rows: int, columns: int) -> Tensor:
    """[rows, columns], each row on a boundary of 128 bytes: 30,524 words are no multiple of 8."""
    return like.new_empty(rows, triton.cdiv(columns, 64) * 64)[:, :columns]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, not rounded on the way where the device's library can leave it."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b
