"""Cross-attention in Triton, against a loop over texts in higher precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gate import Case, Gate
from memories import attend_to_memories, offsets_of
from torch import Tensor

from blip_fast import kernels
from blip_fast.kernels import _ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IMAGES = 3


def _case(
    lengths: list[int],
    index: list[int],
    keys: list[int] | None,
    dtype: torch.dtype,
    size: tuple[int, int] = (19, 64),
    scale: float = 1.0,
) -> Case:
    tokens, width = size
    q = torch.randn(sum(lengths), 2, width) * scale
    texts = offsets_of(lengths), torch.tensor(index, dtype=torch.int64)
    key_lengths = None if keys is None else torch.tensor(keys)

    def call(q: Tensor, memory: Tensor) -> Tensor:
        return kernels.cross_attention(q, memory, *texts, key_lengths)

    def formula(high: torch.dtype, q: Tensor, memory: Tensor) -> Tensor:
        out = attend_to_memories(q.to(high), memory.to(high), lengths, index, keys)
        return out + 0 * (q.sum() + memory.sum()) if out.numel() else out + 0 * q

    memory = torch.randn(IMAGES, tokens, 2, 2, width)
    gradients = ("q", "memory") if lengths and sum(lengths) and scale == 1 else ()
    return Case(call, formula, {"q": q.to(dtype), "memory": memory.to(dtype)}, gradients)


class TestCrossAttention(Gate):
    room = "cross_attention"
    implementations = ("triton",)
    cases = {
        **{
            f"unsorted, one memory unread, {d}": partial(
                _case, [3, 1, 9, 2, 5], [2, 0, 2, 2, 0], None, d
            )
            for d in DTYPES
        },
        "more rows than a tile": partial(_case, [50, 3, 30], [1, 0, 1], None, torch.bfloat16),
        "several tiles of keys": partial(_case, [7, 2], [0, 2], None, torch.bfloat16, (150, 64)),
        "a full tile": partial(_case, [3, 2], [0, 2], None, torch.float16, (64, 64)),
        "one row": partial(_case, [1], [1], None, torch.bfloat16),
        "an empty text": partial(_case, [2, 0, 3], [0, 1, 2], None, torch.bfloat16),
        "unequal memories": partial(_case, [3, 1, 9], [2, 0, 1], [5, 2, 19], torch.bfloat16),
        "a memory of no keys": partial(_case, [3, 2, 1], [0, 2, 1], [0, 4, 19], torch.float32),
        "no texts": partial(_case, [], [], None, torch.bfloat16),
        "heads of 88": partial(_case, [4, 2], [0, 2], None, torch.bfloat16, (40, 88)),
        "heads of 17": partial(_case, [4, 2], [0, 2], None, torch.float32, (20, 17)),
        "large scores": partial(_case, [4, 2], [0, 2], None, torch.float32, (40, 64), 1e8),
    }


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    q, memory = torch.randn(13, 2, 64).bfloat16(), torch.randn(3, 70, 2, 2, 64).bfloat16()
    index = torch.tensor([2, 0, 2])
    with kernels.use("triton"):
        together = kernels.cross_attention(q, memory, offsets_of([4, 3, 6]), index)
        for part, of, image in zip(
            q.split([4, 3, 6]), together.split([4, 3, 6]), index, strict=True
        ):
            alone = kernels.cross_attention(
                part, memory[image][None], offsets_of([len(part)]), torch.zeros(1).long()
            )
            assert torch.equal(alone, of)


def test_a_layer_of_all_memories_is_read_where_it_lies() -> None:
    q, layers = torch.randn(3, 2, 64), torch.randn(2, 4, 21, 2, 2, 64)
    texts = offsets_of([2, 1]), torch.tensor([1, 0])
    for memory in (layers[1], layers[0].flatten(0, 1).unflatten(0, (2, 42))[:, ::2]):
        with kernels.use("triton"):
            out = kernels.cross_attention(q, memory, *texts)
            assert torch.equal(out, kernels.cross_attention(q, memory.contiguous(), *texts))


def test_more_texts_than_are_compared_at_once() -> None:
    q, memory = torch.randn(1100, 1, 16), torch.randn(2, 5, 2, 1, 16)
    index = torch.arange(1100) % 2
    with kernels.use("triton"):
        out = kernels.cross_attention(q, memory, offsets_of([1] * 1100), index)
    expected = attend_to_memories(q, memory, [1] * 1100, index.tolist(), None)
    torch.testing.assert_close(out, expected)


def test_the_gpu_chooses_triton_and_a_cpu_does_not() -> None:
    room = _ops._rooms["cross_attention"]
    q = torch.zeros(1, 1, 64)
    assert (room.choose(q) == "triton") == (q.device.type == "cuda")
    with kernels.use("triton"), pytest.raises(ValueError, match="it computes float32, bfloat16"):
        room.choose(q.double())
