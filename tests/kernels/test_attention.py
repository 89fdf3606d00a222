"""Self-attention, dense and packed, against a loop over sequences and heads in higher precision."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from forcing import ISAS, TILES, Recorder, forced_path, needs_native, threads
from oracles import attend
from tolerance import assert_close_as_torch, wide
from torch import Tensor

from blip_fast import kernels

DTYPES = [torch.float32, torch.bfloat16]
# One token, few, around the blocks of keys (64; 32 on tiles) and of queries, and the model's at
# 224 px.
LENGTHS = [[1], [5, 1, 17, 2], [3, 3, 3], [64, 0, 65], [31, 97], [197]]
# Other than BLIP's 64: around vectors and pairs of them, odd, and the largest.
WIDTHS = [1, 16, 33, 80, 128]


@pytest.fixture(params=[*ISAS, *TILES, "reference"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native code of one instruction set after the other, and the reference, by name."""
    with forced_path(request.param, "attention"):
        yield request.param


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def oracle(qkv: Tensor, lengths: list[int], causal: bool) -> Tensor:
    parts = qkv.split(lengths)
    return torch.cat([attend(p[:, 0], p[:, 1], p[:, 2], causal) for p in parts])


def gradient(function, qkv: Tensor, grad: Tensor) -> Tensor:
    leaf = qkv.detach().clone().requires_grad_()
    function(leaf).backward(grad.to(leaf.dtype))
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed(path: str, lengths: list[int], causal: bool, dtype: torch.dtype) -> None:
    qkv = torch.randn(sum(lengths), 3, 2, 64).to(dtype)
    grad = torch.randn(sum(lengths), 2, 64).to(dtype)

    def ours(x: Tensor) -> Tensor:
        return kernels.attention(x, offsets_of(lengths), max(lengths), causal=causal)

    def torchs(x: Tensor) -> Tensor:
        return oracle(x, lengths, causal)

    truth = torchs(qkv.to(wide(dtype)))
    assert_close_as_torch("packed", ours(qkv), torchs(qkv), truth)
    if path != "reference":  # whose gradient is autograd's
        truth = gradient(torchs, qkv.to(wide(dtype)), grad)
        same = gradient(torchs, qkv, grad)
        assert_close_as_torch("gradient", gradient(ours, qkv, grad), same, truth)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_of_head(path: str, width: int, dtype: torch.dtype) -> None:
    qkv, grad = torch.randn(2, 70, 3, 3, width).to(dtype), torch.randn(2, 70, 3, width).to(dtype)

    def ours(x: Tensor) -> Tensor:
        return kernels.attention(x)

    def torchs(x: Tensor) -> Tensor:
        return torch.stack([oracle(image, [70], False) for image in x])

    truth = torchs(qkv.to(wide(dtype)))
    assert_close_as_torch("dense", ours(qkv), torchs(qkv), truth)
    if path != "reference":  # whose gradient is autograd's
        truth = gradient(torchs, qkv.to(wide(dtype)), grad)
        same = gradient(torchs, qkv, grad)
        assert_close_as_torch("gradient", gradient(ours, qkv, grad), same, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-20, 30.0, 1e4, 1e15])
def test_extreme_values_stay_finite_and_exact(path: str, scale: float, dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 40, 3, 2, 64).to(dtype)
    qkv[:, :, :2] *= scale
    truth = torch.stack([oracle(image, [40], False) for image in qkv.to(wide(dtype))])
    same = torch.stack([oracle(image, [40], False) for image in qkv])
    assert_close_as_torch(f"scale {scale}", kernels.attention(qkv), same, truth)


@pytest.mark.parametrize("causal", [False, True])
def test_scores_far_above_the_first_ones(path: str, causal: bool) -> None:
    """On tiles weights are taken against the first keys; rows where that overflows are repeated.

    From key 40 on some queries score so high that float32 does not hold e to the difference, and
    values are so large that products of weights with them overflow where their sum does not.
    """
    qkv = torch.randn(150, 3, 2, 64)
    qkv[:, :2] *= 4
    qkv[40::9, 1] *= 5
    qkv[70:80, 1] = qkv[120:130, 0] * 3
    qkv[:, 2, 1] *= 1e30
    qkv = qkv.bfloat16()
    assert reaches(qkv, 32, causal) > 100.0, "no weight overflows"
    truth = oracle(qkv.float(), [150], causal)
    ours = kernels.attention(qkv[None], causal=causal)[0]
    assert ours.isfinite().all()
    same = oracle(qkv, [150], causal)
    for head in range(2):
        names = f"head {head}, causal {causal}"
        assert_close_as_torch(names, ours[:, head], same[:, head], truth[:, head])


def reaches(qkv: Tensor, first: int, causal: bool) -> float:
    """By how much, at the most, a query's largest score is above that of its first keys."""
    q, k, _ = qkv.float().permute(1, 2, 0, 3)
    scores = q @ k.transpose(-1, -2) / 8
    if causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.amax(-1) - scores[..., :first].amax(-1)).max().item()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", [3, 40, 69])
def test_what_is_not_finite_is_as_in_the_formula(path: str, bad: float, where: int) -> None:
    """In a value it reaches what attends to it, and nothing else; in a query its own row."""
    values, queries = torch.randn(2, 70, 3, 1, 64).bfloat16().unbind()
    values[where, 2, 0, 7] = bad
    out = kernels.attention(values[None])[0, :, 0]
    assert out[:, :7].isfinite().all() and out[:, 8:].isfinite().all()
    assert (out[:, 7].isnan() if bad != bad else out[:, 7] == bad).all()
    queries[where, 0, 0, 7] = bad
    out = kernels.attention(queries[None])[0, :, 0]
    assert out[where].isnan().all()
    assert out[:where].isfinite().all() and out[where + 1 :].isfinite().all()


def test_a_nan_reaches_its_own_sequence_and_head_only(path: str) -> None:
    qkv = torch.randn(12, 3, 2, 64)
    qkv[2, 1, 0, 5] = torch.nan  # a key of the first sequence, first head
    out = kernels.attention(qkv, offsets_of([7, 5]), 7)
    assert out[:7, 0].isnan().all()
    assert out[:7, 1].isfinite().all() and out[7:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_does_not_depend_on_its_neighbours(path: str, dtype: torch.dtype) -> None:
    if path == "reference":
        pytest.skip("PyTorch's kernels choose by shape")
    lengths = [9, 40, 1, 100]
    qkv = torch.randn(sum(lengths), 3, 2, 64).to(dtype)
    together = kernels.attention(qkv, offsets_of(lengths), 100, causal=True)
    for alone, part in zip(qkv.split(lengths), together.split(lengths), strict=True):
        assert torch.equal(kernels.attention(alone[None], causal=True)[0], part)


def test_no_sequences_and_empty_ones(path: str) -> None:
    none = torch.zeros(0, 3, 2, 64)
    assert kernels.attention(none, offsets_of([]), 0).shape == (0, 2, 64)
    assert kernels.attention(none, offsets_of([0, 0]), 0).shape == (0, 2, 64)
    assert kernels.attention(none[None]).shape == (1, 0, 2, 64)


def test_non_contiguous(path: str) -> None:
    qkv = torch.randn(2, 11, 6, 2, 64).bfloat16()[:, :, ::2]
    grad = torch.randn(2, 2, 11, 64).bfloat16().transpose(1, 2)
    assert torch.equal(kernels.attention(qkv), kernels.attention(qkv.contiguous()))
    strided = gradient(kernels.attention, qkv, grad)
    assert torch.equal(strided, gradient(kernels.attention, qkv, grad.contiguous()))


def test_gradients_reach_every_token_of_its_own_sequence_only(path: str) -> None:
    qkv = torch.randn(5, 3, 1, 64, requires_grad=True)
    kernels.attention(qkv, offsets_of([2, 3]), 3)[:2].square().sum().backward()
    assert qkv.grad is not None
    assert qkv.grad[:2].abs().sum() > 0
    assert qkv.grad[2:].abs().sum() == 0


@needs_native
def test_logsumexp() -> None:
    qkv = torch.randn(2, 30, 3, 2, 64)
    _, logsumexp = torch.ops.blip_fast.attention.native(qkv, None, 0, False)
    q, k, _ = qkv.double().permute(2, 0, 3, 1, 4)
    truth = (q @ k.transpose(-1, -2) / 8).logsumexp(-1).transpose(1, 2)
    torch.testing.assert_close(logsumexp, truth.float(), rtol=1e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 300, 1), (3, 90, 2)])
def test_two_runs_are_bit_equal_whatever_the_threads(
    number: int, shape: tuple[int, int, int]
) -> None:
    images, tokens, heads = shape
    qkv = torch.randn(images, tokens, 3, heads, 64).bfloat16()
    grad = torch.randn(images, tokens, heads, 64).bfloat16()
    first = kernels.attention(qkv), gradient(kernels.attention, qkv, grad)
    with threads(number):
        second = kernels.attention(qkv), gradient(kernels.attention, qkv, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_native
@pytest.mark.parametrize("offsets", [None, offsets_of([4, 0, 6])], ids=["dense", "packed"])
def test_operators_are_sound_and_compile_whole(offsets: Tensor | None) -> None:
    qkv = torch.randn(10, 3, 2, 16)
    if offsets is None:
        qkv = qkv[None]
    longest = 0 if offsets is None else 6
    torch.library.opcheck(torch.ops.blip_fast.attention.native, (qkv, offsets, longest, True))
    out, logsumexp = torch.ops.blip_fast.attention.native(qkv, offsets, longest, True)
    saved = (torch.randn_like(out), qkv, out, logsumexp, offsets, longest, True)
    torch.library.opcheck(torch.ops.blip_fast.attention_backward.native, saved)

    def block(x: Tensor) -> Tensor:
        return kernels.attention(x.relu(), offsets, None if offsets is None else 6) + 1

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(qkv), block(qkv))
    grad = torch.randn_like(out)
    torch.testing.assert_close(gradient(compiled, qkv, grad), gradient(block, qkv, grad))


@needs_native
def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    qkv = torch.randn(1, 3, 3, 1, 16)
    forward, backward = (f"blip_fast.{n}.native" for n in ("attention", "attention_backward"))
    for implementation, expected in (("native", [forward, backward]), ("reference", [])):
        with kernels.use(implementation), Recorder() as recorder:
            gradient(kernels.attention, qkv, torch.ones(1, 3, 1, 16))
        assert recorder.names == expected
    with Recorder() as recorder:
        kernels.attention(qkv.half())
    assert recorder.names == []
    with kernels.use("native"), pytest.raises(ValueError, match="it computes float32, bfloat16"):
        kernels.attention(qkv.half())


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="both offsets and max_length"):
        kernels.attention(torch.zeros(4, 3, 2, 64), torch.tensor([0, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"\[N, S, 3, H, D\]"):
        kernels.attention(torch.zeros(4, 3, 2, 64))
    with pytest.raises(ValueError, match=r"must be torch.int32"):
        kernels.attention(torch.zeros(4, 3, 2, 64), torch.tensor([0, 4]), 4)


@needs_native
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 5], "offsets go from 0 to 5"),
        ([1, 4], "offsets go from 1 to 4"),
        ([0, 3, 2, 4], "sequence 1 has length -1"),
        ([0, 4], "from 0 to max_length, 3"),
    ],
)
def test_offsets_that_would_lead_outside_raise(offsets: list[int], message: str) -> None:
    qkv = torch.zeros(4, 3, 2, 64)
    with kernels.use("native"), pytest.raises(RuntimeError, match=message):
        kernels.attention(qkv, torch.tensor(offsets, dtype=torch.int32), 3)
