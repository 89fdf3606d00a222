"""Cross-attention in Triton, against a loop over texts in higher precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from gate import Case, Gate
from memories import attend_to_memories, offsets_of
from tolerance import assert_close_as_torch
from torch import Tensor

from blip_fast import kernels
from blip_fast.kernels import _ops
from blip_fast.kernels.cross_attention import config

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
        **{f"heads of 88, {d}": partial(_case, [4, 2], [0, 2], None, d, (40, 88)) for d in DTYPES},
        "heads of 88, unequal": partial(_case, [4, 2], [0, 2], [9, 1, 40], DTYPES[1], (40, 88)),
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_beyond_a_memorys_length_is_not_read(dtype: torch.dtype) -> None:
    q, memory = torch.randn(6, 2, 64).to(dtype), torch.randn(3, 70, 2, 2, 64).to(dtype)
    lengths, rooms = torch.tensor([5, 0, 66]), _ops._rooms["cross_attention"]
    texts = offsets_of([3, 1, 2]), torch.tensor([2, 1, 0]), lengths
    results = []
    for beyond in (0.0, torch.nan):
        for m, length in enumerate(lengths.tolist()):
            memory[m, length:] = beyond
        out, logsumexp = rooms.operator("triton")(q, memory, *texts)
        backward = rooms.operator("triton", "cross_attention_backward")
        results.append((out, *backward(q, q, memory, out, logsumexp, *texts)))
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other) and other.isfinite().all()
    for grad, length in zip(results[1][2], lengths.tolist(), strict=True):
        assert grad[length:].eq(0).all() and (not length or grad[:length].ne(0).any())


def test_gradients_of_a_layer_of_all_memories() -> None:
    q, layers = torch.randn(3, 2, 64), torch.randn(2, 4, 2, 21, 2, 2, 64)
    texts, grads = (offsets_of([2, 1]), torch.tensor([1, 0])), []
    memory = layers[1].select(1, 1)  # neither images nor keys lie one after the other
    for same in (memory, memory.contiguous()):
        leaves = q.clone().requires_grad_(), same.detach().requires_grad_()
        with kernels.use("triton"):
            kernels.cross_attention(*leaves, *texts).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for strided, dense in zip(*grads, strict=True):
        assert torch.equal(strided, dense) and dense.ne(0).any()


@pytest.mark.skipif(not _ops.TRITON_INTERPRETED, reason="the interpreter alone counts loads")
def test_a_memory_is_read_once_for_all_texts_of_its_image() -> None:
    """Forward, an image's rows share each key as far as a tile of rows goes."""
    from interpreter import loads_of

    q, memory = torch.randn(60, 2, 64).bfloat16(), torch.randn(3, 70, 2, 2, 64).bfloat16()
    with loads_of(memory) as counts, kernels.use("triton"):
        kernels.cross_attention(q, memory, offsets_of([20] * 3), torch.tensor([2, 0, 2]))
    assert counts[[0, 2]].eq(1).all() and counts[1].eq(0).all()


def test_more_texts_than_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And among them texts of more rows than are listed at once."""
    monkeypatch.setattr(config, "CHUNK", 16)
    lengths = [40, 0, 16, *[1] * 32, 17]
    q, memory = torch.randn(sum(lengths), 1, 16), torch.randn(2, 5, 2, 1, 16)
    index = torch.arange(len(lengths)) % 2
    with kernels.use("triton"):
        out = kernels.cross_attention(q, memory, offsets_of(lengths), index)
    expected = attend_to_memories(q, memory, lengths, index.tolist(), None)
    torch.testing.assert_close(out, expected)


def test_4700_keys() -> None:
    tensors = torch.randn(3, 1, 64).bfloat16(), torch.randn(1, 4700, 2, 1, 64).bfloat16()
    texts, grad = (offsets_of([2, 1]), torch.zeros(2).long()), torch.randn(3, 1, 64).bfloat16()

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = function(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))

    with kernels.use("triton"):
        actual = run(lambda q, memory: kernels.cross_attention(q, memory, *texts), torch.bfloat16)
    formula = partial(attend_to_memories, lengths=[2, 1], index=[0, 0], keys=None)
    same, truth = run(formula, torch.bfloat16), run(formula, torch.float32)
    for name, *triple in zip(("output", "of q", "of memory"), actual, same, truth, strict=True):
        assert_close_as_torch(name, *triple)


def test_the_gpu_chooses_triton_and_a_cpu_does_not() -> None:
    room = _ops._rooms["cross_attention"]
    q = torch.zeros(1, 1, 64)
    assert (room.choose(q) == "triton") == (q.device.type == "cuda")
    with kernels.use("triton"), pytest.raises(ValueError, match="it computes float32, bfloat16"):
        room.choose(q.double())
