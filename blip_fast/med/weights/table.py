"""What each layout calls our tensors: the one table that reading and writing both come from.

Three layouts exist. Ours (`MED.named_parameters()`) fuses query, key and value, and names a tied
tensor once. Salesforce's files (BLIP, LAVIS and their descendants) keep projections apart and
store tied tensors under every name. The transformers library renames the vision transformer,
keeps the rest, and stores tied tensors once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from blip_fast.config import BlipConfig
from blip_fast.med.blip import MED

Layout = Literal["blip_fast", "transformers", "salesforce"]
LAYOUTS: tuple[Layout, ...] = ("blip_fast", "transformers", "salesforce")

# In all tables: {i} is a layer, {s} a side of NLVR2's twin cross-attention, .* weight and bias,
# and parts joined by + lie one below the other in ours.

# Ours, Salesforce, transformers.
_VISION = (
    (
        "vision.cls_token",
        "visual_encoder.cls_token",
        "vision_model.embeddings.class_embedding",
    ),
    (
        "vision.position",
        "visual_encoder.pos_embed",
        "vision_model.embeddings.position_embedding",
    ),
    (
        "vision.patch_embed.*",
        "visual_encoder.patch_embed.proj.*",
        "vision_model.embeddings.patch_embedding.*",
    ),
    (
        "vision.blocks.{i}.norm1.*",
        "visual_encoder.blocks.{i}.norm1.*",
        "vision_model.encoder.layers.{i}.layer_norm1.*",
    ),
    (
        "vision.blocks.{i}.qkv.*",
        "visual_encoder.blocks.{i}.attn.qkv.*",
        "vision_model.encoder.layers.{i}.self_attn.qkv.*",
    ),
    (
        "vision.blocks.{i}.proj.*",
        "visual_encoder.blocks.{i}.attn.proj.*",
        "vision_model.encoder.layers.{i}.self_attn.projection.*",
    ),
    (
        "vision.blocks.{i}.norm2.*",
        "visual_encoder.blocks.{i}.norm2.*",
        "vision_model.encoder.layers.{i}.layer_norm2.*",
    ),
    (
        "vision.blocks.{i}.fc1.*",
        "visual_encoder.blocks.{i}.mlp.fc1.*",
        "vision_model.encoder.layers.{i}.mlp.fc1.*",
    ),
    (
        "vision.blocks.{i}.fc2.*",
        "visual_encoder.blocks.{i}.mlp.fc2.*",
        "vision_model.encoder.layers.{i}.mlp.fc2.*",
    ),
    (
        "vision.norm.*",
        "visual_encoder.norm.*",
        "vision_model.post_layernorm.*",
    ),
)
_COLUMN: dict[Layout, int] = {"blip_fast": 0, "salesforce": 1, "transformers": 2}

# Ours, both others; below the name of a text stack.
_SELF = "encoder.layer.{i}.attention."
_CROSS = "encoder.layer.{i}.crossattention."
_TEXT = (
    ("embeddings.word.weight", "embeddings.word_embeddings.weight"),
    ("embeddings.position.weight", "embeddings.position_embeddings.weight"),
    ("embeddings.norm.*", "embeddings.LayerNorm.*"),
    (
        "layers.{i}.self_attention.qkv.*",
        f"{_SELF}self.query.* + {_SELF}self.key.* + {_SELF}self.value.*",
    ),
    ("layers.{i}.self_attention.proj.*", f"{_SELF}output.dense.*"),
    ("layers.{i}.self_attention.norm.*", f"{_SELF}output.LayerNorm.*"),
    ("layers.{i}.cross_attention.query.*", f"{_CROSS}self.query.*"),
    ("layers.{i}.cross_attention.key_value.*", f"{_CROSS}self.key.* + {_CROSS}self.value.*"),
    ("layers.{i}.cross_attention.proj.*", f"{_CROSS}output.dense.*"),
    ("layers.{i}.cross_attention.query.{s}.*", f"{_CROSS}self{{s}}.query.*"),
    (
        "layers.{i}.cross_attention.key_value.{s}.*",
        f"{_CROSS}self{{s}}.key.* + {_CROSS}self{{s}}.value.*",
    ),
    ("layers.{i}.cross_attention.proj.{s}.*", f"{_CROSS}output.dense{{s}}.*"),
    ("layers.{i}.cross_attention.merge.*", f"{_CROSS}output.merge_layer.*"),
    ("layers.{i}.cross_attention.norm.*", f"{_CROSS}output.LayerNorm.*"),
    ("layers.{i}.mlp.fc1.*", "encoder.layer.{i}.intermediate.dense.*"),
    ("layers.{i}.mlp.fc2.*", "encoder.layer.{i}.output.dense.*"),
    ("layers.{i}.mlp.norm.*", "encoder.layer.{i}.output.LayerNorm.*"),
)
TEXT_STACKS = {"text_encoder.": "text_encoder.", "text_decoder.": "text_decoder.bert."}

_HEADS = (
    ("lm_head.dense.*", "text_decoder.cls.predictions.transform.dense.*"),
    ("lm_head.norm.*", "text_decoder.cls.predictions.transform.LayerNorm.*"),
    ("lm_head.bias", "text_decoder.cls.predictions.bias"),
    ("vision_proj.*", "vision_proj.*"),
    ("text_proj.*", "text_proj.*"),
    ("itm_head.*", "itm_head.*"),
    ("temperature.value", "temp"),
    ("classifier.fc1.*", "cls_head.0.*"),
    ("classifier.fc2.*", "cls_head.2.*"),
)

# Second names of one tensor, in every kind that has a decoder.
_ALSO_NAMED = {
    "text_decoder.embeddings.word.weight": "text_decoder.cls.predictions.decoder.weight",
    "lm_head.bias": "text_decoder.cls.predictions.decoder.bias",
}

# What only training needs: momentum copies, their queues and pointers; and BERT's position
# counter, a buffer.
_TRAINING_ONLY = re.compile(
    r"(\w+_m\..+|(image|text|idx)_queue|queue_ptr|ptr_queue|.+\.embeddings\.position_ids)"
)

Parts = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Entry:
    """One of our tensors, and where a layout keeps it.

    Attributes:
        ours: its name in `MED.named_parameters()`.
        parts: laid one below the other they are our tensor; a part is one tensor and the names
            it is stored under, the one it always has first. Empty where the layout lacks it.
        shape: of ours.
        part_shape: of each part in the layout.
    """

    ours: str
    parts: Parts
    shape: tuple[int, ...]
    part_shape: tuple[int, ...]


def is_training_only(name: str) -> bool:
    """Whether a Salesforce or transformers tensor is one that inference never reads."""
    return _TRAINING_ONLY.fullmatch(name) is not None


def vision_name(ours: str, layout: Layout) -> str:
    """What `layout` calls a row of the vision table, with its {i} and .* left in."""
    return next(row[_COLUMN[layout]] for row in _VISION if row[0] == ours)


def parameter_shapes(config: BlipConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of a MED of this config, each tied one once."""
    with torch.device("meta"):
        model = MED(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def entries(config: BlipConfig, layout: Layout) -> list[Entry]:
    """Every parameter of a MED of this config, and where `layout` keeps it."""
    shapes = parameter_shapes(config)
    if layout == "blip_fast":
        return [Entry(name, ((name,),), shape, shape) for name, shape in shapes.items()]
    parts = _foreign_parts(config, layout, shapes)
    unflattened = _unflattened(config)
    table = []
    for name, shape in shapes.items():
        part_shape = unflattened.get(name, shape)
        if len(parts[name]) > 1:
            part_shape = (shape[0] // len(parts[name]), *shape[1:])
        table.append(Entry(name, parts[name], shape, part_shape))
    return table


def _unflattened(config: BlipConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that the other layouts keep with other axes."""
    vision = config.vision
    return {
        "temperature.value": (),
        "vision.cls_token": (1, 1, vision.width),
        "vision.position": (1, vision.tokens, vision.width),
        "vision.patch_embed.weight": (vision.width, 3, vision.patch_size, vision.patch_size),
    }


def _foreign_parts(config: BlipConfig, layout: Layout, known: Iterable[str]) -> dict[str, Parts]:
    """The parts of our tensors in another layout; also of some that this kind does not have."""
    column = _COLUMN[layout]
    parts = dict(_expand(((row[0], row[column]) for row in _VISION), config.vision.depth))
    for ours, theirs in TEXT_STACKS.items():
        rows = [(ours + a, " + ".join(theirs + name for name in b.split(" + "))) for a, b in _TEXT]
        parts |= dict(_expand(rows, config.text.depth))
    parts |= dict(_expand(_HEADS, 1))
    for name, second in _ALSO_NAMED.items():
        parts[name] = ((*parts[name][0], second),)
    if layout == "transformers":
        parts["temperature.value"] = ()
    if config.ties_decoder:
        _join_tied(parts, set(known))
    return parts


def _join_tied(parts: dict[str, Parts], known: set[str]) -> None:
    """Add the names of the decoder's tied tensors to those of the encoder's, which we keep."""
    for name in parts:
        kept = name.replace("text_decoder.", "text_encoder.", 1)
        if name.startswith("text_decoder.") and name not in known and kept in known:
            parts[kept] = tuple(a + b for a, b in zip(parts[kept], parts[name], strict=True))


def _expand(rows: Iterable[tuple[str, str]], depth: int) -> Iterator[tuple[str, Parts]]:
    """Fill in {i}, {s} and .* of table rows."""
    for ours, theirs in rows:
        for i in range(depth if "{i}" in ours else 1):
            for s in range(2 if "{s}" in ours else 1):
                for kind in ("weight", "bias") if ours.endswith("*") else ("",):
                    fill = {"i": i, "s": s}
                    filled = theirs.replace("*", kind).format(**fill).split(" + ")
                    yield ours.replace("*", kind).format(**fill), tuple((n,) for n in filled)
