"""Peers of the rooms at both ends of a model, for GPUs: pixels in, tokens out, the past between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Call = Callable[[], Tensor]


def patch_peers(
    images: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> dict[str, Callable[[], Call]]:
    """Normalised patch rows of uint8 images [N, 3, H, W], by name."""
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    def unfold() -> Tensor:
        pixels = (images.float() / 255 - shift) / scale
        return F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1).to(dtype)

    return {
        "torch, normalise and unfold": lambda: unfold,
        "torch.compile, normalise and unfold": lambda: torch.compile(unfold),
    }


def embedding_peers(
    images: Tensor, weight: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Callable[[], Call]]:
    """Patches of uint8 images times a weight [W, 3, P, P], by name."""
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    def convolve() -> Tensor:
        pixels = ((images.float() / 255 - shift) / scale).to(weight.dtype)
        out = F.conv2d(pixels, weight, stride=weight.shape[-1])
        return out.flatten(2).transpose(1, 2).flatten(0, 1)

    return {"torch, normalise and conv2d": lambda: convolve}


def sample_peers(
    logits: Tensor, uniform: Tensor, top_k: int, top_p: float
) -> dict[str, Callable[[], Call]]:
    """A token a row of logits [B, V], from the top-k (0: all) and top-p part, by name."""

    def ranked() -> Tensor:
        if top_k:
            best, tokens = logits.topk(top_k)
        else:
            best, tokens = logits.sort(dim=1, descending=True, stable=True)
        weights = (best.double() - best[:, :1].double()).exp()
        reached = weights.cumsum(1)
        weights = weights * (reached - weights < top_p * reached[:, -1:])
        threshold = uniform[:, None].double() * weights.sum(1, keepdim=True)
        place = (weights.cumsum(1) <= threshold).sum(1, keepdim=True)
        return tokens.gather(1, place)[:, 0].float()

    return {f"torch, {'topk' if top_k else 'sort'}": lambda: ranked}


def beam_peers(log_probs: Tensor, scores: Tensor, keep: int) -> dict[str, Callable[[], Call]]:
    """The best scores of each image's continuations, by name."""

    def of_all() -> Tensor:
        total = log_probs.view(*scores.shape, -1) + scores[:, :, None]
        return total.flatten(1).topk(keep)[0]

    return {"torch, add and topk": lambda: of_all}


def past_peers(
    q: Tensor, cache: Tensor, ancestors: Tensor, lengths: Tensor
) -> dict[str, Callable[[], Call]]:
    """Attention of q [B, H, D] to pasts that are gathered first, by name."""
    place = torch.arange(cache.shape[1])
    known = (place < lengths[:, None])[:, None, None]

    def gathered() -> Tensor:
        k, v = cache[ancestors, place].permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=known)[:, :, 0]

    return {"torch SDPA, past gathered": lambda: gathered}
