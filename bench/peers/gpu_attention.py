"""The strongest attention there is for GPUs, of whoever is installed; each called by name.

A peer is a function that takes the tensors and returns a call. It raises where its package or its
backend is not there: `bench/gpu_races.py` notes why and goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Call = Callable[[], Tensor]
Attend = Callable[[Tensor], Tensor]


def dense_peers() -> dict[str, Callable[[], Attend]]:
    """Attention of [N, S, 3, H, D], by name."""
    return {
        **{f"torch SDPA, {name}": lambda name=name: _sdpa(name) for name in _BACKENDS},
        "torch.compile of matmuls": lambda: torch.compile(plain),
        "FlexAttention": _flex,
        "flash-attn": _flash,
        "flash-attn 3": _flash3,
        "xformers": _xformers,
    }


_BACKENDS = {
    "flash": "FLASH_ATTENTION",
    "cuDNN": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
}


def _heads_first(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


def _sdpa(name: str) -> Attend:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, _BACKENDS[name])

    def attend(qkv: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*_heads_first(qkv)).transpose(1, 2)

    return attend


def plain(qkv: Tensor) -> Tensor:
    """Attention as the textbook has it, scores stored."""
    q, k, v = _heads_first(qkv)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


def _flex() -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    return lambda qkv: compiled(*_heads_first(qkv)).transpose(1, 2)


def _flash() -> Attend:
    from flash_attn import flash_attn_qkvpacked_func

    return flash_attn_qkvpacked_func


def _flash3() -> Attend:
    from flash_attn_interface import flash_attn_func

    def attend(qkv: Tensor) -> Tensor:
        out = flash_attn_func(*qkv.unbind(2))
        return out[0] if isinstance(out, tuple) else out

    return attend


def _xformers() -> Attend:
    from xformers.ops import memory_efficient_attention

    return lambda qkv: memory_efficient_attention(*qkv.unbind(2))


def packed_peers(offsets: Tensor, length: int, causal: bool) -> dict[str, Callable[[], Attend]]:
    """Attention of [T, 3, H, D], texts of `length` tokens one after the other."""

    def padded() -> Attend:
        def attend(qkv: Tensor) -> Tensor:
            q, k, v = _heads_first(qkv.unflatten(0, (-1, length)))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            return out.transpose(1, 2).flatten(0, 1)

        return attend

    def flash() -> Attend:
        from flash_attn import flash_attn_varlen_qkvpacked_func as varlen

        return lambda qkv: varlen(qkv, offsets, length, causal=causal)

    return {"torch SDPA, nothing to pad": padded, "flash-attn, packed": flash}


def cross_peers(
    offsets: Tensor, index: Tensor, length: int
) -> dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]]:
    """Attention of q [T, H, D], texts of `length` tokens, to gathered memories."""

    def gathered() -> Callable[[Tensor, Tensor], Tensor]:
        def attend(q: Tensor, memory: Tensor) -> Tensor:
            k, v = memory[index].permute(2, 0, 3, 1, 4)
            rows = q.unflatten(0, (-1, length)).transpose(1, 2)
            return F.scaled_dot_product_attention(rows, k, v).transpose(1, 2).flatten(0, 1)

        return attend

    def flash() -> Callable[[Tensor, Tensor], Tensor]:
        from flash_attn import flash_attn_varlen_kvpacked_func as varlen

        def attend(q: Tensor, memory: Tensor) -> Tensor:
            pairs, keys = memory[index].flatten(0, 1), memory.shape[1]
            ends = torch.arange(len(index) + 1, device=q.device, dtype=torch.int32) * keys
            return varlen(q, pairs, offsets, ends, length, keys)

        return attend

    return {"torch SDPA, memory gathered": gathered, "flash-attn, memory gathered": flash}


def decode_peers(
    q: Tensor, memory: Tensor, index: Tensor, beams: int
) -> dict[str, Callable[[], Call]]:
    """Attention of q [B, H, D] to memories, `beams` sequences an image side by side."""

    def folded() -> Tensor:
        k, v = memory.permute(2, 0, 3, 1, 4)
        rows = q.unflatten(0, (-1, beams)).transpose(1, 2)
        return F.scaled_dot_product_attention(rows, k, v).transpose(1, 2).flatten(0, 1)

    def gathered() -> Tensor:
        k, v = memory[index].permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q[:, :, None], k, v)[:, :, 0]

    return {
        "torch SDPA, beams as rows": lambda: folded,
        "torch SDPA, memory gathered": lambda: gathered,
    }
