"""BLIP step by step: padded, masked, unfused, on a state dict with Salesforce's names.

The oracle of the parity tests: plain PyTorch that shares no code with blip_fast. Every function
takes the whole state dict and the prefix of the module it computes. Heads are 64 wide.

Shapes: B texts of L tokens padded with zeros, `mask` [B, L] with 1 at tokens and 0 at padding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

HEAD_WIDTH = 64
VISION_EPS = 1e-6
TEXT_EPS = 1e-12
MASKED = -10000.0


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    normalised = centred / torch.sqrt(variance + eps)
    return normalised * state[f"{name}.weight"] + state[f"{name}.bias"]


def split_heads(x: Tensor) -> Tensor:
    """[B, L, W] -> [B, heads, L, 64]."""
    return x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of [B, L, W] queries over [B, K, W]; `bias` is added to the scores."""
    q, k, v = split_heads(q), split_heads(k), split_heads(v)
    scores = q @ k.transpose(-1, -2) / HEAD_WIDTH**0.5
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def depth_of(state: State, prefix: str) -> int:
    return 1 + max(int(n[len(prefix) :].split(".")[0]) for n in state if n.startswith(prefix))


# Vision


def interpolate_position(position: Tensor, grid: int) -> Tensor:
    """[1, 1 + G * G, W] -> [1, 1 + grid * grid, W]: bicubic, the class token's vector kept."""
    old = int((position.shape[1] - 1) ** 0.5)
    if old == grid:
        return position
    cls, patches = position[:, :1], position[:, 1:]
    patches = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def vit(state: State, pixels: Tensor) -> Tensor:
    """Normalised pixels [N, 3, S, S] -> [N, 1 + patches, W]."""
    weight = state["visual_encoder.patch_embed.proj.weight"]
    bias = state["visual_encoder.patch_embed.proj.bias"]
    patches = F.conv2d(pixels, weight, bias, stride=weight.shape[-1])
    grid = patches.shape[-1]
    patches = patches.flatten(2).transpose(1, 2)
    cls = state["visual_encoder.cls_token"].expand(len(pixels), -1, -1)
    x = torch.cat([cls, patches], dim=1)
    x = x + interpolate_position(state["visual_encoder.pos_embed"], grid)
    for i in range(depth_of(state, "visual_encoder.blocks.")):
        block = f"visual_encoder.blocks.{i}"
        h = layer_norm(state, f"{block}.norm1", x, VISION_EPS)
        q, k, v = linear(state, f"{block}.attn.qkv", h).chunk(3, dim=-1)
        x = x + linear(state, f"{block}.attn.proj", attend(q, k, v))
        h = layer_norm(state, f"{block}.norm2", x, VISION_EPS)
        h = F.gelu(linear(state, f"{block}.mlp.fc1", h))
        x = x + linear(state, f"{block}.mlp.fc2", h)
    return layer_norm(state, "visual_encoder.norm", x, VISION_EPS)


# Text


def additive(mask: Tensor) -> Tensor:
    """[B, K] of ones and zeros -> [B, 1, 1, K] of 0 and -10000."""
    return (1.0 - mask.float())[:, None, None] * MASKED


def causal(mask: Tensor) -> Tensor:
    """[B, L] -> [B, 1, L, L]: a token sees itself and the tokens before it."""
    length = mask.shape[1]
    seen = torch.ones(length, length).tril()[None, None] * mask.float()[:, None, None]
    return (1.0 - seen) * MASKED


def projected_attention(
    state: State, name: str, x: Tensor, source: Tensor, bias: Tensor | None
) -> Tensor:
    q = linear(state, f"{name}.query", x)
    k = linear(state, f"{name}.key", source)
    v = linear(state, f"{name}.value", source)
    return attend(q, k, v, bias)


def cross_attention(
    state: State, layer: str, x: Tensor, memories: list[Tensor], bias: Tensor | None
) -> Tensor:
    """One memory, or NLVR2's two: averaged in the lower layers, merged in the upper."""
    name = f"{layer}.crossattention"
    if len(memories) == 1:
        h = projected_attention(state, f"{name}.self", x, memories[0], bias)
        h = linear(state, f"{name}.output.dense", h)
    else:
        sides = []
        for s, memory in enumerate(memories):
            side = projected_attention(state, f"{name}.self{s}", x, memory, None)
            sides.append(linear(state, f"{name}.output.dense{s}", side))
        if f"{name}.output.merge_layer.weight" in state:
            h = linear(state, f"{name}.output.merge_layer", torch.cat(sides, dim=-1))
        else:
            h = (sides[0] + sides[1]) / 2
    return layer_norm(state, f"{name}.output.LayerNorm", h + x, TEXT_EPS)


def bert(
    state: State,
    prefix: str,
    ids: Tensor,
    mask: Tensor,
    memories: list[Tensor] | None = None,
    memory_mask: Tensor | None = None,
    decoder: bool = False,
) -> Tensor:
    """Ids [B, L] -> states [B, L, W]; text mode without `memories`, else multimodal."""
    words = state[f"{prefix}embeddings.word_embeddings.weight"][ids]
    places = state[f"{prefix}embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = layer_norm(state, f"{prefix}embeddings.LayerNorm", words + places, TEXT_EPS)
    own = causal(mask) if decoder else additive(mask)
    other = None if memory_mask is None else additive(memory_mask)
    for i in range(depth_of(state, f"{prefix}encoder.layer.")):
        layer = f"{prefix}encoder.layer.{i}"
        h = projected_attention(state, f"{layer}.attention.self", x, x, own)
        h = linear(state, f"{layer}.attention.output.dense", h)
        x = layer_norm(state, f"{layer}.attention.output.LayerNorm", h + x, TEXT_EPS)
        if memories is not None:
            x = cross_attention(state, layer, x, memories, other)
        h = F.gelu(linear(state, f"{layer}.intermediate.dense", x))
        h = linear(state, f"{layer}.output.dense", h)
        x = layer_norm(state, f"{layer}.output.LayerNorm", h + x, TEXT_EPS)
    return x


def lm_logits(
    state: State, ids: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor | None = None
) -> Tensor:
    """Texts beginning with [DEC] -> scores of each next token [B, L, V]."""
    x = bert(state, "text_decoder.bert.", ids, mask, [memory], memory_mask, decoder=True)
    head = "text_decoder.cls.predictions"
    x = F.gelu(linear(state, f"{head}.transform.dense", x))
    x = layer_norm(state, f"{head}.transform.LayerNorm", x, TEXT_EPS)
    return x @ state[f"{head}.decoder.weight"].T + state[f"{head}.bias"]


def lm_losses(logits: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Loss of every token given those before it, [B, L]; 0 at position 0 and at padding."""
    targets = ids.masked_fill(mask == 0, -100)[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2),
        targets,
        ignore_index=-100,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return F.pad(losses, (1, 0))


# Heads


def image_feature(state: State, tokens: Tensor) -> Tensor:
    """Image tokens [N, S, W] -> ITC features [N, E]."""
    return F.normalize(linear(state, "vision_proj", tokens[:, 0]), dim=-1)


def text_feature(state: State, ids: Tensor, mask: Tensor) -> Tensor:
    """Texts beginning with [CLS] -> ITC features [B, E]."""
    states = bert(state, "text_encoder.", ids, mask)
    return F.normalize(linear(state, "text_proj", states[:, 0]), dim=-1)


def itm_logits(state: State, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """Texts beginning with [ENC], each with its image's tokens [B, S, W] -> [B, 2]."""
    states = bert(state, "text_encoder.", ids, mask, [tokens])
    return linear(state, "itm_head", states[:, 0])


def answer_logits(
    state: State,
    question: tuple[Tensor, Tensor],
    tokens: Tensor,
    answer: tuple[Tensor, Tensor],
) -> Tensor:
    """Questions beginning with [ENC] and answers beginning with [DEC], as (ids, mask), with
    image tokens [B, S, W] -> scores of each answer's next token [B, L, V]."""
    states = bert(state, "text_encoder.", *question, [tokens])
    return lm_logits(state, *answer, states, question[1])


def nlvr_logits(state: State, ids: Tensor, mask: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Sentences beginning with [ENC] and the tokens of two images -> [B, 2]."""
    states = bert(state, "text_encoder.", ids, mask, [left, right])
    h = torch.relu(linear(state, "cls_head.0", states[:, 0]))
    return linear(state, "cls_head.2", h)
