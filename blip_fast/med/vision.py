"""The vision transformer (Dosovitskiy et al., arXiv 2010.11929), as BLIP's vit.py has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip_fast import kernels
from blip_fast.config import IMAGE_MEAN, IMAGE_STD, VisionConfig, check_image_size
from blip_fast.med.layers import DropPath, LayerNorm, Linear, feed_forward


class VisionBlock(nn.Module):
    """Pre-norm block. It takes and gives the residual stream with the last update still apart,
    so that every addition is joined to the LayerNorm behind it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.norm1 = LayerNorm(config.width, config.layer_norm_eps)
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self.norm2 = LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)
        self.drop_path = DropPath()

    def forward(self, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """[N, S, W] twice -> the same: the stream, and what is to be added to it."""
        if update is None:
            h = self.norm1(x)
        else:
            x, h = self.norm1.add(update, x)
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, self.head_width))
        seen = self.proj(kernels.attention(qkv).flatten(2))
        x, h = self.norm2.add(self.drop_path(seen), x)
        return x, self.drop_path(feed_forward(self.fc1, self.fc2, h))


class VisionTransformer(nn.Module):
    """Images to image tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = Linear(3 * config.patch_size**2, config.width)
        self.cls_token = nn.Parameter(torch.zeros(config.width))
        self.position = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """Image tokens, the class token first.

        Args:
            images: [N, 3, S, S], S any multiple of the patch size. uint8, or floating and then
                already normalised.

        Returns:
            [N, 1 + (S / patch)^2, W] in the parameters' dtype.

        Raises:
            ValueError: where images are not square or S does not fit.
        """
        if images.shape[-1] != images.shape[-2]:
            raise ValueError(
                f"images must be square; they are {images.shape[-2]} x {images.shape[-1]} pixels"
            )
        check_image_size(images.shape[-1], self.config.patch_size)
        x, update = self._embed(images), None
        for block in self.blocks:
            x, update = block(x, update)
        return self.norm(x) if update is None else self.norm.add(update, x)[1]

    def _embed(self, images: Tensor) -> Tensor:
        n, grid = images.shape[0], images.shape[-1] // self.config.patch_size
        patches = kernels.patchify(
            images, self.config.patch_size, IMAGE_MEAN, IMAGE_STD, self.cls_token.dtype
        )
        patches = self.patch_embed(patches).unflatten(0, (n, grid**2))
        tokens = torch.cat([self.cls_token.expand(n, 1, -1), patches], dim=1)
        return tokens + interpolate_positions(self.position, grid)


def interpolate_positions(position: Tensor, grid: int) -> Tensor:
    """Position vectors for another grid of patches: the class token's kept, the rest resized.

    Bicubic, corners not aligned, as BLIP's `interpolate_pos_embed`.

    Args:
        position: [1 + G * G, W].
        grid: patches along one side.

    Returns:
        [1 + grid * grid, W].
    """
    old = round((position.shape[0] - 1) ** 0.5)
    if old == grid:
        return position
    square = position[1:].float().view(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    resized = resized.permute(0, 2, 3, 1).reshape(grid**2, -1)
    return torch.cat([position[:1], resized.to(position.dtype)])
