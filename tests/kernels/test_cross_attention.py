"""Cross-attention by index, every implementation against a loop over texts in high precision."""

from __future__ import annotations

import pytest
import torch
from forcing import Recorder, forced_path, needs_native, threads
from memories import (
    DTYPES,
    NATIVE_PATHS,
    PATHS,
    attend_to_memories,
    between_nans,
    offsets_of,
)
from tolerance import assert_close_as_torch, wide
from torch import Tensor

from blip_fast import kernels

Texts = tuple[list[int], list[int], list[int] | None]

# Lengths of texts, the memory of each, and keys of each of 3 memories.
TEXTS: dict[str, Texts] = {
    "alike": ([4, 4, 4], [0, 1, 2], None),
    "unsorted, one memory unread": ([3, 1, 9, 2, 5], [2, 0, 2, 2, 0], None),
    "one row": ([1], [1], None),
    "an empty text": ([2, 0, 3], [0, 1, 2], None),
    "unequal memories": ([3, 1, 9], [2, 0, 1], [5, 2, 19]),
    "a memory of no keys": ([3, 2, 1], [0, 2, 1], [0, 4, 19]),
    "more rows than a block": ([100, 3, 30], [1, 0, 1], None),
    "no texts": ([], [], None),
}
# Keys and width of a head: one block and its ends, several, widths around the vectors.
SIZES = [(19, 64), (64, 64), (65, 64), (197, 64), (33, 16), (50, 48), (20, 80), (130, 128)]


def inputs(texts: Texts, keys: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    q = torch.randn(sum(texts[0]), 2, width).to(dtype)
    return between_nans(q), between_nans(torch.randn(3, keys, 2, 2, width).to(dtype))


def run(q: Tensor, memory: Tensor, texts: Texts) -> Tensor:
    lengths, index, keys = texts
    return kernels.cross_attention(
        q,
        memory,
        offsets_of(lengths),
        torch.tensor(index, dtype=torch.int64),
        None if keys is None else torch.tensor(keys),
    )


def formula(q: Tensor, memory: Tensor, texts: Texts) -> Tensor:
    return attend_to_memories(q, memory, *texts)


def check(
    name: str, implementation: str, texts: Texts, keys: int, width: int, dtype: torch.dtype
) -> None:
    """Forward and both gradients."""
    q, memory = inputs(texts, keys, width, dtype)
    grad = torch.randn_like(q)

    def results(call, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (q, memory)]
        out = call(*leaves, texts)
        grads = torch.autograd.grad(out, leaves, grad.to(dtype), materialize_grads=True)
        return [out.detach(), *grads]

    truth, same = results(formula, wide(dtype)), results(formula, dtype)
    with forced_path(implementation):
        actual = results(run, dtype)
        with torch.no_grad():
            alone = run(q, memory, texts)
    assert torch.equal(alone, actual[0]), "with and without gradients"
    for part, *triple in zip(("out", "grad q", "grad memory"), actual, same, truth, strict=True):
        assert_close_as_torch(f"{name} {part}", *triple)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("implementation", PATHS)
def test_texts_of_every_kind(implementation: str, texts: Texts, dtype: torch.dtype) -> None:
    check(implementation, implementation, texts, 19, 64, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keys", "width"), SIZES)
@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_sizes_of_every_kind(isa: str, keys: int, width: int, dtype: torch.dtype) -> None:
    check(isa, isa, ([7, 2, 13, 70], [0, 2, 0, 1], None), keys, width, dtype)


@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_one_key_gives_its_value_and_no_gradient_to_queries(isa: str) -> None:
    q, memory = inputs(([3, 2], [1, 0], None), 1, 64, torch.float32)
    q.requires_grad_()
    with forced_path(isa):
        out = run(q, memory, ([3, 2], [1, 0], None))
        (grad,) = torch.autograd.grad(out, q, torch.randn_like(out))
    expected = memory[torch.tensor([1, 1, 1, 0, 0]), 0, 1]
    torch.testing.assert_close(out.detach(), expected, rtol=1e-6, atol=0)
    assert not grad.any()


@pytest.mark.parametrize("scale", [1e-20, 30.0, 1e4])
@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_extreme_scores_stay_finite_and_exact(isa: str, scale: float) -> None:
    texts: Texts = ([5, 6], [0, 1], None)
    q, memory = inputs(texts, 100, 64, torch.float32)
    q = q * scale
    memory[:, 50] *= 8  # the largest scores come late
    with forced_path(isa):
        actual = run(q, memory, texts)
    same, truth = formula(q, memory, texts), formula(q.double(), memory.double(), texts)
    assert_close_as_torch(f"{isa} {scale}", actual, same, truth)


@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_a_bad_row_keeps_to_itself(isa: str) -> None:
    texts: Texts = ([4, 5], [0, 0], None)
    q, memory = inputs(texts, 70, 64, torch.bfloat16)
    with forced_path(isa):
        before = run(q, memory, texts)
        q[2] = torch.nan
        after = run(q, memory, texts)
    assert after[2].isnan().all()
    others = [0, 1, 3, 4, 5, 6, 7, 8]
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_results_do_not_depend_on_neighbours(isa: str) -> None:
    texts: Texts = ([4, 5, 30], [0, 2, 0], None)
    q, memory = inputs(texts, 70, 64, torch.bfloat16)
    with forced_path(isa):
        together = run(q, memory, texts)
        alone = run(q[4:9], memory, ([5], [2], None))
    assert torch.equal(together[4:9], alone)


@needs_native
def test_logsumexp_is_that_of_the_scores() -> None:
    q, memory = inputs(([3, 4], [1, 0], None), 90, 64, torch.float32)
    arguments = (offsets_of([3, 4]), torch.tensor([1, 0]), torch.tensor([0, 70, 1]))
    _, actual = torch.ops.blip_fast.cross_attention.native(q, memory, *arguments)
    scores = torch.einsum("thd,khd->thk", q[:3], memory[1, :70, 0]) / 8
    torch.testing.assert_close(actual[:3], scores.logsumexp(-1), rtol=1e-6, atol=1e-6)
    assert (actual[3:] == -torch.inf).all()


@needs_native
def test_any_layout_of_the_inputs() -> None:
    texts: Texts = ([3, 4, 2], [1, 0, 1], [20, 7, 3])
    q, memory = inputs(texts, 20, 64, torch.float32)
    with forced_path("portable"):
        expected = run(q, memory, texts)
        strided = torch.stack((q, q), dim=-1)[..., 0]
        part = torch.cat((memory, memory), dim=1)[:, :20]  # gaps between memories: read in place
        turned = memory.transpose(1, 3).contiguous().transpose(1, 3)
        for layout in (part, turned):
            assert torch.equal(run(strided, layout, texts), expected)


def test_gradient_sums_into_each_image_once() -> None:
    q = torch.randn(6, 1, 64, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 5, 2, 1, 64, dtype=torch.float64, requires_grad=True)
    texts: Texts = ([2, 1, 3], [1, 0, 1], None)
    weights = torch.randn(6, 1, 64, dtype=torch.float64)
    ours = torch.autograd.grad((run(q, memory, texts) * weights).sum(), (q, memory))
    theirs = torch.autograd.grad((formula(q, memory, texts) * weights).sum(), (q, memory))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@needs_native
@pytest.mark.parametrize("keys", [None, [70, 3, 0]])
def test_operators_are_sound_and_compile_whole(keys: list[int] | None) -> None:
    texts: Texts = ([7, 2, 13], [0, 2, 0], keys)
    q, memory = inputs(texts, 70, 64, torch.float32)
    key_lengths = None if keys is None else torch.tensor(keys)
    arguments = (offsets_of(texts[0]), torch.tensor(texts[1]), key_lengths)
    ops = torch.ops.blip_fast
    torch.library.opcheck(ops.cross_attention.native, (q, memory, *arguments))
    out, logsumexp = ops.cross_attention.native(q, memory, *arguments)
    backward = (torch.randn_like(q), q, memory, out, logsumexp, *arguments)
    torch.library.opcheck(ops.cross_attention_backward.native, backward)

    def loss(q: Tensor, memory: Tensor) -> Tensor:
        return kernels.cross_attention(q * 2, memory, *arguments).square().sum()

    def gradients(call) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (q, memory)]
        return torch.autograd.grad(call(*leaves), leaves)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled), gradients(loss), strict=True):
        torch.testing.assert_close(a, b)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_and_any_number_of_threads_are_bit_equal(dtype: torch.dtype) -> None:
    texts: Texts = ([12] * 40, [n % 3 for n in range(40)], None)
    q, memory = inputs(texts, 197, 64, dtype)

    def once() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, memory)]
        out = run(*leaves, texts)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]

    with threads(1):
        first = once()
    for _ in range(2):
        with threads(2):
            assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@needs_native
def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    texts: Texts = ([2, 3], [0, 1], None)
    q, memory = inputs(texts, 9, 64, torch.float32)
    ours = ["blip_fast.cross_attention.native", "blip_fast.cross_attention_backward.native"]
    for implementation, expected in (("native", ours), ("reference", [])):
        with kernels.use(implementation), Recorder() as recorder:
            run(q.clone().requires_grad_(), memory, texts).sum().backward()
        assert recorder.names == expected


@needs_native
def test_a_width_that_native_code_does_not_take() -> None:
    texts: Texts = ([2, 3], [0, 1], None)
    q, memory = inputs(texts, 9, 24, torch.float32)
    assert_close_as_torch("24", *(f(q, memory, texts) for f in (run, formula, formula)))
    with (
        kernels.use("native"),
        pytest.raises(ValueError, match="heads are 24 wide, not a multiple of 16"),
    ):
        run(q, memory, texts)


@needs_native
def test_indices_out_of_range_are_refused() -> None:
    q, memory = inputs(([2, 3], [0, 1], None), 9, 64, torch.float32)
    op = torch.ops.blip_fast.cross_attention.native
    index = torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match=r"index\[1\] is 3, but there are 3 memories"):
        op(q, memory, offsets_of([2, 3]), torch.tensor([0, 3]), None)
    with pytest.raises(RuntimeError, match="offsets go from 0 to 4, but q has rows 0 to 5"):
        op(q, memory, offsets_of([2, 2]), index, None)
    with pytest.raises(RuntimeError, match="must ascend"):
        op(q, memory, torch.tensor([0, 7, 5], dtype=torch.int32), index, None)
    with pytest.raises(RuntimeError, match=r"key_lengths\[2\] is 10, but memories have 9"):
        op(q, memory, offsets_of([2, 3]), index, torch.tensor([1, 2, 10]))


def test_shapes_and_dtypes_are_checked() -> None:
    q, memory = torch.zeros(4, 2, 64), torch.zeros(3, 5, 2, 1, 64)
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="needs a memory of shape"):
        kernels.cross_attention(q, memory, offsets, torch.tensor([0]))
    memory = torch.zeros(3, 5, 2, 2, 64)
    with pytest.raises(ValueError, match="2 sequences need 3 offsets; there are 2"):
        kernels.cross_attention(q, memory, offsets, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="they must agree"):
        kernels.cross_attention(q, memory.bfloat16(), offsets, torch.tensor([0]))
