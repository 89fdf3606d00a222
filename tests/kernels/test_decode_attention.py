"""One query a sequence, every implementation against a loop in high precision."""

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
)
from oracles import attend
from tolerance import assert_close_as_torch, wide
from torch import Tensor

from blip_fast import kernels

WIDTHS = [16, 48, 64, 80, 128]


def past(
    lengths: list[int], positions: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, cache, ancestors, lengths. What does not count is garbage: NaN, and rows far away."""
    number = len(lengths)
    q = between_nans(torch.randn(number, 3, width).to(dtype))
    cache = torch.full((number + 2, positions, 2, 3, width), torch.nan, dtype=dtype)
    ancestors = torch.full((number, positions), 1 << 40)
    for b, length in enumerate(lengths):
        ancestors[b, :length] = torch.randint(0, number + 2, (length,))
        cache[ancestors[b, :length], torch.arange(length)] = torch.randn(length, 2, 3, width).to(
            dtype
        )
    return q, cache, ancestors, torch.tensor(lengths, dtype=torch.int64)


def follow(q: Tensor, cache: Tensor, ancestors: Tensor, lengths: Tensor) -> Tensor:
    rows = [q[:0]]
    for b, length in enumerate(lengths.tolist()):
        k, v = cache[ancestors[b, :length], torch.arange(length)].unbind(1)
        rows.append(attend(q[b : b + 1], k, v, causal=False))
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_the_past_is_found_through_ancestors(isa: str, width: int, dtype: torch.dtype) -> None:
    tensors = past([1, 40, 3, 17, 9], 40, width, dtype)
    with forced_path(isa):
        actual = kernels.decode_attention(*tensors)
    q, cache, *table = tensors
    truth = follow(q.to(wide(dtype)), cache.to(wide(dtype)), *table)
    assert_close_as_torch(isa, actual, follow(*tensors), truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_follows_ancestors(dtype: torch.dtype) -> None:
    q, cache, ancestors, lengths = past([1, 6, 3, 4], 6, 64, dtype)
    ancestors = ancestors.clamp(max=5)
    cache = cache.nan_to_num(nan=1.0)
    with forced_path("reference"):
        actual = kernels.decode_attention(q, cache, ancestors, lengths)
    high = wide(dtype)
    truth = follow(q.to(high), cache.to(high), ancestors, lengths)
    assert_close_as_torch("reference", actual, follow(q, cache, ancestors, lengths), truth)


@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_no_past_and_no_sequences(isa: str) -> None:
    q, cache, ancestors, lengths = past([2, 0, 1], 4, 64, torch.bfloat16)
    with forced_path(isa):
        out = kernels.decode_attention(q, cache, ancestors, lengths)
        none = kernels.decode_attention(q[:0], cache, ancestors[:0], lengths[:0])
    assert not out[1].any() and out[0].isfinite().all()
    assert none.shape == (0, 3, 64)


# The memory of each sequence, and keys of each of 4 memories.
GROUPS: dict[str, tuple[list[int], list[int] | None]] = {
    "beams side by side": ([0, 0, 0, 1, 1, 1, 3, 3, 3], None),
    "any order": ([3, 0, 0, 3, 1, 3], None),
    "many of one": ([2] * 31, None),
    "unequal memories": ([2, 0, 0, 2, 2], [150, 1, 64, 0]),
    "a memory of no keys": ([3, 1, 3], [150, 10, 3, 0]),
    "one": ([1], None),
    "no sequences": ([], None),
}


def memories(index: list[int], width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    q = torch.randn(len(index), 3, width).to(dtype)
    return between_nans(q), between_nans(torch.randn(4, 150, 2, 3, width).to(dtype))


def decode(q: Tensor, memory: Tensor, index: list[int], keys: list[int] | None) -> Tensor:
    key_lengths = None if keys is None else torch.tensor(keys)
    place = torch.tensor(index, dtype=torch.int64)
    return kernels.decode_cross_attention(q, memory, place, key_lengths)


def check(
    implementation: str, index: list[int], keys: list[int] | None, width: int, dtype: torch.dtype
) -> None:
    q, memory = memories(index, width, dtype)
    with forced_path(implementation):
        actual = decode(q, memory, index, keys)
    texts, high = ([1] * len(index), index, keys), wide(dtype)
    truth = attend_to_memories(q.to(high), memory.to(high), *texts)
    assert_close_as_torch(implementation, actual, attend_to_memories(q, memory, *texts), truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("index", "keys"), GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("implementation", PATHS)
def test_memory_is_found_through_the_index(
    implementation: str, index: list[int], keys: list[int] | None, dtype: torch.dtype
) -> None:
    check(implementation, index, keys, 64, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("isa", NATIVE_PATHS)
def test_memory_of_every_width(isa: str, width: int, dtype: torch.dtype) -> None:
    check(isa, [1, 0, 1], [150, 33, 0, 0], width, dtype)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_and_any_number_of_threads_are_bit_equal(dtype: torch.dtype) -> None:
    index = [n % 3 for n in range(20)]
    q, memory = memories(index, 64, dtype)
    cached = past([30] * 20, 40, 64, dtype)
    runs = []
    for number in (1, 2, 2):
        with threads(number):
            runs.append((decode(q, memory, index, None), kernels.decode_attention(*cached)))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@needs_native
def test_operators_are_sound_and_compile_whole() -> None:
    q, memory = memories([1, 0, 1], 64, torch.float32)
    index, keys = torch.tensor([1, 0, 1]), torch.tensor([150, 33, 0, 0])
    ops = torch.ops.blip_fast
    torch.library.opcheck(ops.decode_cross_attention.native, (q, memory, index, None))
    torch.library.opcheck(ops.decode_cross_attention.native, (q, memory, index, keys))
    _, cache, ancestors, lengths = past([3, 1, 4], 4, 64, torch.float32)
    torch.library.opcheck(ops.decode_attention.native, (q, cache, ancestors, lengths))

    def step(q: Tensor, cache: Tensor, memory: Tensor) -> Tensor:
        q = kernels.decode_attention(q * 2, cache, ancestors, lengths)
        return kernels.decode_cross_attention(q, memory, index, keys).relu()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, cache, memory), step(q, cache, memory))


@needs_native
def test_any_layout_of_the_inputs() -> None:
    q, memory = memories([1, 0, 1], 64, torch.float32)
    q, cache, ancestors, lengths = past([3, 1, 4], 4, 64, torch.float32)
    fused = torch.stack((q, q, q), dim=1)[:, 1]
    wider = torch.cat((cache, cache), dim=1)[:, :4]  # gaps between rows: read in place
    expected = kernels.decode_attention(q, cache, ancestors, lengths)
    assert torch.equal(kernels.decode_attention(fused, wider, ancestors, lengths), expected)
    turned = memory.transpose(1, 3).contiguous().transpose(1, 3)
    expected = decode(q, memory, [1, 0, 1], None)
    assert torch.equal(decode(fused, turned, [1, 0, 1], None), expected)


@needs_native
def test_the_implementation_asked_for_is_the_one_that_runs() -> None:
    q, memory = memories([1, 0, 1], 64, torch.float32)
    cached = past([3, 1, 4], 4, 64, torch.float32)
    cached[2].clamp_(max=4)
    ours = ["blip_fast.decode_attention.native", "blip_fast.decode_cross_attention.native"]
    for implementation, expected in (("native", ours), ("reference", [])):
        with kernels.use(implementation), Recorder() as recorder:
            kernels.decode_attention(*cached)
            decode(q, memory, [1, 0, 1], None)
        assert recorder.names == expected


@needs_native
def test_gradients_come_from_the_reference_or_not_at_all() -> None:
    q, memory = memories([1, 0, 1], 64, torch.float32)
    q.requires_grad_()
    decode(q, memory, [1, 0, 1], None).sum().backward()
    assert q.grad is not None
    with kernels.use("native"), pytest.raises(ValueError, match="no native gradient"):
        decode(q, memory, [1, 0, 1], None)


@needs_native
def test_rows_out_of_range_are_refused() -> None:
    q, cache, ancestors, lengths = past([2, 3], 3, 64, torch.float32)
    op = torch.ops.blip_fast.decode_attention.native
    with pytest.raises(RuntimeError, match=r"lengths\[1\] is 4, but the cache has 3 positions"):
        op(q, cache, ancestors, torch.tensor([2, 4]))
    ancestors[1, 2] = 4
    with pytest.raises(RuntimeError, match=r"ancestors\[1, 2\] is 4, but the cache has 4 rows"):
        op(q, cache, ancestors, lengths)


def test_shapes_and_dtypes_are_checked() -> None:
    q = torch.zeros(2, 2, 64)
    with pytest.raises(ValueError, match="need ancestors of that shape"):
        kernels.decode_attention(
            q, torch.zeros(2, 6, 2, 2, 64), torch.zeros(2, 5).long(), torch.ones(2).long()
        )
    with pytest.raises(ValueError, match="2 queries need as many indices; there are 3"):
        kernels.decode_cross_attention(q, torch.zeros(2, 6, 2, 2, 64), torch.zeros(3).long())
    with pytest.raises(ValueError, match="they must agree"):
        kernels.decode_cross_attention(
            q, torch.zeros(2, 6, 2, 2, 64).bfloat16(), torch.zeros(2).long()
        )
