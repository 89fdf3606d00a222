"""BLIP's pretraining step as its authors' code has it, in plain PyTorch.

Texts padded to 30 tokens, attention scores stored, the image's keys and values projected by every
pass over it (ITM's positives, its negatives twice the batch, LM), vocabulary logits of every place,
similarities to the whole queue stored, negatives drawn one row and one `.item()` at a time, the
moving average one parameter at a time. On a state dict with Salesforce's names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

LENGTH = 30
HEAD_WIDTH = 64
PATCH = 16


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = heads(q) @ heads(k).transpose(-1, -2) * HEAD_WIDTH**-0.5
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)


def depth(state: State, prefix: str) -> int:
    return 1 + max(int(n[len(prefix) :].split(".")[0]) for n in state if n.startswith(prefix))


def vit(state: State, images: Tensor) -> Tensor:
    """Normalised [B, 3, S, S] -> [B, 1 + patches, W]."""
    embed = "visual_encoder.patch_embed.proj"
    x = F.conv2d(images, state[f"{embed}.weight"], state[f"{embed}.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["visual_encoder.cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + state["visual_encoder.pos_embed"]
    for i in range(depth(state, "visual_encoder.blocks.")):
        block = f"visual_encoder.blocks.{i}"
        q, k, v = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, 1e-6)).chunk(
            3, dim=-1
        )
        x = x + linear(state, f"{block}.attn.proj", attend(q, k, v, None))
        h = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + linear(state, f"{block}.mlp.fc2", h)
    return norm(state, "visual_encoder.norm", x, 1e-6)


def bert(
    state: State,
    prefix: str,
    ids: Tensor,
    mask: Tensor,
    image: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Ids [B, L] -> states [B, L, W], grounded in image tokens [B, S, W'] where there are some."""
    x = F.embedding(ids, state[f"{prefix}embeddings.word_embeddings.weight"])
    x = x + state[f"{prefix}embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(state, f"{prefix}embeddings.LayerNorm", x, 1e-12)
    seen = mask[:, None, None].expand(-1, 1, ids.shape[1], -1)
    bias = (1 - (seen.tril() if causal else seen).to(x.dtype)) * -10000.0
    for i in range(depth(state, f"{prefix}encoder.layer.")):
        layer = f"{prefix}encoder.layer.{i}"
        x = block(state, f"{layer}.attention", x, x, bias)
        if image is not None:
            x = block(state, f"{layer}.crossattention", x, image, None)
        h = F.gelu(linear(state, f"{layer}.intermediate.dense", x))
        h = linear(state, f"{layer}.output.dense", h)
        x = norm(state, f"{layer}.output.LayerNorm", h + x, 1e-12)
    return x


def block(state: State, name: str, x: Tensor, source: Tensor, bias: Tensor | None) -> Tensor:
    q = linear(state, f"{name}.self.query", x)
    k, v = (linear(state, f"{name}.self.{part}", source) for part in ("key", "value"))
    h = linear(state, f"{name}.output.dense", attend(q, k, v, bias))
    return norm(state, f"{name}.output.LayerNorm", h + x, 1e-12)


def image_feature(state: State, tokens: Tensor) -> Tensor:
    return F.normalize(linear(state, "vision_proj", tokens[:, 0]), dim=-1)


def text_feature(state: State, ids: Tensor, mask: Tensor) -> Tensor:
    states = bert(state, "text_encoder.", ids, mask)
    return F.normalize(linear(state, "text_proj", states[:, 0]), dim=-1)


@dataclass
class PlainPretrain:
    """The online and momentum weights, and the queues [E, Q]."""

    state: State
    momentum: State
    image_queue: Tensor
    text_queue: Tensor
    first_tokens: tuple[int, int, int]  # [CLS], [ENC], [DEC]
    pointer: int = 0
    drawn: tuple[list[int], list[int]] = ((), ())  # type: ignore[assignment]

    def follow(self) -> None:
        for name, tensor in self.momentum.items():
            self.momentum[name] = tensor * 0.995 + self.state[name].detach() * 0.005

    def losses(self, images: Tensor, ids: Tensor, mask: Tensor, alpha: float) -> dict[str, Tensor]:
        """Normalised images [B, 3, S, S] and padded texts [B, 30]."""
        state, batch = self.state, len(ids)
        cls, enc, dec = (with_first(ids, first) for first in self.first_tokens)
        with torch.no_grad():
            state["temp"].clamp_(0.001, 0.5)
        tokens = vit(state, images)
        image, text = image_feature(state, tokens), text_feature(state, cls, mask)
        with torch.no_grad():
            self.follow()
            image_m = image_feature(self.momentum, vit(self.momentum, images))
            text_m = text_feature(self.momentum, cls, mask)
            image_all = torch.cat([image_m.T, self.image_queue], dim=1)
            text_all = torch.cat([text_m.T, self.text_queue], dim=1)
            hard = torch.zeros(batch, image_all.shape[1], dtype=image.dtype).fill_diagonal_(1)
            soft = [
                f @ bank / state["temp"] for f, bank in ((image_m, text_all), (text_m, image_all))
            ]
            targets = [alpha * s.softmax(1) + (1 - alpha) * hard for s in soft]
        similarity = [
            f @ bank / state["temp"] for f, bank in ((image, text_all), (text, image_all))
        ]
        itc = sum(
            -(s.log_softmax(1) * y).sum(1).mean() for s, y in zip(similarity, targets, strict=True)
        )
        self.push(image_m, text_m)
        itm = self.matching(tokens, enc, mask, *similarity)
        logits = self.logits(dec, mask, tokens)
        labels = dec.masked_fill(mask == 0, -100)
        shifted = logits[:, :-1].contiguous().view(-1, logits.shape[-1])
        lm = F.cross_entropy(shifted, labels[:, 1:].reshape(-1), label_smoothing=0.1)
        return {"itc": itc / 2, "itm": itm, "lm": lm}

    def push(self, images: Tensor, texts: Tensor) -> None:
        end = self.pointer + len(images)
        self.image_queue[:, self.pointer : end] = images.T
        self.text_queue[:, self.pointer : end] = texts.T
        self.pointer = end % self.image_queue.shape[1]

    def matching(
        self, tokens: Tensor, ids: Tensor, mask: Tensor, i2t: Tensor, t2i: Tensor
    ) -> Tensor:
        batch = len(ids)
        positive = bert(self.state, "text_encoder.", ids, mask, tokens)[:, 0]
        with torch.no_grad():
            weights = [s[:, :batch].softmax(1).float() + 1e-4 for s in (t2i, i2t)]
            for weight in weights:
                weight.fill_diagonal_(0)
        images, texts = (
            [int(torch.multinomial(row, 1).item()) for row in weight] for weight in weights
        )
        self.drawn = images, texts
        negative_tokens = torch.stack([tokens[i] for i in images])
        negative_ids = torch.stack([ids[i] for i in texts])
        negative_mask = torch.stack([mask[i] for i in texts])
        negative = bert(
            self.state,
            "text_encoder.",
            torch.cat([ids, negative_ids]),
            torch.cat([mask, negative_mask]),
            torch.cat([negative_tokens, tokens]),
        )[:, 0]
        logits = linear(self.state, "itm_head", torch.cat([positive, negative]))
        labels = torch.cat([torch.ones(batch), torch.zeros(2 * batch)]).long()
        return F.cross_entropy(logits, labels)

    def logits(self, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        x = bert(self.state, "text_decoder.bert.", ids, mask, tokens, causal=True)
        head = "text_decoder.cls.predictions"
        x = F.gelu(linear(self.state, f"{head}.transform.dense", x))
        x = norm(self.state, f"{head}.transform.LayerNorm", x, 1e-12)
        return linear(self.state, f"{head}.decoder", x)


def with_first(ids: Tensor, first: int) -> Tensor:
    ids = ids.clone()
    ids[:, 0] = first
    return ids
