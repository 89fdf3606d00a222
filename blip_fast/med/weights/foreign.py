"""Weights of other models that BLIP's training starts from: an image-classifying ViT, a BERT.

Both come in their libraries' names and become ours; what a BLIP has no use for (classifiers,
poolers, distillation, token types) is left aside and listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.med.vision import interpolate_positions
from blip_fast.med.weights.errors import WeightsError, listed
from blip_fast.med.weights.files import PICKLES, SAFETENSORS, read_tensors

State = dict[str, Tensor]

_LAYER = "encoder.layer.{i}."
# Ours, timm's, transformers'; parts joined by + lie one below the other in ours.
_VISION = (
    ("cls_token", "cls_token", "embeddings.cls_token"),
    ("position", "pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.*", "patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
    ("blocks.{i}.norm1.*", "blocks.{i}.norm1.*", f"{_LAYER}layernorm_before.*"),
    (
        "blocks.{i}.qkv.*",
        "blocks.{i}.attn.qkv.*",
        " + ".join(f"{_LAYER}attention.attention.{p}.*" for p in ("query", "key", "value")),
    ),
    ("blocks.{i}.proj.*", "blocks.{i}.attn.proj.*", f"{_LAYER}attention.output.dense.*"),
    ("blocks.{i}.norm2.*", "blocks.{i}.norm2.*", f"{_LAYER}layernorm_after.*"),
    ("blocks.{i}.fc1.*", "blocks.{i}.mlp.fc1.*", f"{_LAYER}intermediate.dense.*"),
    ("blocks.{i}.fc2.*", "blocks.{i}.mlp.fc2.*", f"{_LAYER}output.dense.*"),
    ("norm.*", "norm.*", "layernorm.*"),
)
# Ours below a text transformer, BERT's.
_TEXT = (
    ("embeddings.word.weight", "embeddings.word_embeddings.weight"),
    ("embeddings.position.weight", "embeddings.position_embeddings.weight"),
    ("embeddings.norm.*", "embeddings.LayerNorm.*"),
    (
        "layers.{i}.self_attention.qkv.*",
        " + ".join(f"{_LAYER}attention.self.{part}.*" for part in ("query", "key", "value")),
    ),
    ("layers.{i}.self_attention.proj.*", f"{_LAYER}attention.output.dense.*"),
    ("layers.{i}.self_attention.norm.*", f"{_LAYER}attention.output.LayerNorm.*"),
    ("layers.{i}.mlp.fc1.*", f"{_LAYER}intermediate.dense.*"),
    ("layers.{i}.mlp.fc2.*", f"{_LAYER}output.dense.*"),
    ("layers.{i}.mlp.norm.*", f"{_LAYER}output.LayerNorm.*"),
)
_LM_HEAD = (
    ("lm_head.dense.*", "cls.predictions.transform.dense.*"),
    ("lm_head.norm.*", "cls.predictions.transform.LayerNorm.*"),
    ("lm_head.bias", "cls.predictions.bias"),
)
_HEADS_OF_OTHERS = re.compile(
    r"(head|head_dist|fc_norm|classifier|cls_classifier|distillation_classifier|pooler|pre_logits"
    r"|cls\.seq_relationship|cls\.predictions\.decoder)\..+"
    r"|dist_token|embeddings\.(distillation_token|mask_token|token_type_embeddings\.weight"
    r"|position_ids)"
)


def read_vit(source: str | Path, config: BlipConfig) -> tuple[State, list[str]]:
    """A vision transformer's tensors by our names (`vision.*`), and what was left aside.

    Args:
        source: timm's file, a folder of transformers (ViT, DeiT), or a file with our names.
        config: of the model to be; positions are interpolated to its image size.

    Raises:
        WeightsError: where tensors are missing, unknown or of another shape.
    """
    found = _without_prefix(_read(source), ("vision.", "vit.", "deit.", "visual_encoder."))
    column = next((c for c in range(3) if _expand(_VISION[2][c], 0, 0)[0] in found), None)
    if column is None:
        raise WeightsError(
            f"{source} is not a ViT of timm or transformers: it has no patch embedding"
        )
    rows = [(row[0], row[column]) for row in _VISION]
    state, aside = _translate(found, rows, config.vision.depth, str(source))
    position = state["position"].reshape(-1, config.vision.width)
    if any(name.endswith(("dist_token", "distillation_token")) for name in aside):
        # DeiT's distillation token has the second position.
        position = torch.cat([position[:1], position[2:]])
    state["position"] = interpolate_positions(position, config.vision.grid)
    state["cls_token"] = state["cls_token"].reshape(-1)
    state["patch_embed.weight"] = state["patch_embed.weight"].flatten(1)
    return {f"vision.{name}": tensor for name, tensor in state.items()}, aside


def read_bert(source: str | Path, config: BlipConfig) -> tuple[State, list[str]]:
    """A BERT's tensors by the names of our text encoder (`text_encoder.*`) and LM head, and what
    was left aside. Rows that its vocabulary lacks, [DEC] and [ENC], are not filled here.

    Args:
        source: a folder of transformers: BertModel, or one with a masked-LM head.

    Raises:
        WeightsError: as `read_vit`.
    """
    found = _without_prefix(_read(source), ("bert.",))
    rows = [(f"text_encoder.{ours}", theirs) for ours, theirs in _TEXT]
    if "cls.predictions.bias" in found:
        rows += _LM_HEAD
    state, aside = _translate(found, rows, config.text.depth, str(source))
    return state, aside


def _read(source: str | Path) -> State:
    path = Path(source)
    if path.is_dir():
        files = [p for p in (path / "model.safetensors", path / "pytorch_model.bin") if p.is_file()]
    else:
        files = [path] if path.suffix in (*PICKLES, SAFETENSORS) and path.is_file() else []
    if not files:
        raise WeightsError(
            f"{source} is neither a folder with model.safetensors or pytorch_model.bin nor a "
            f"{', '.join((*PICKLES, SAFETENSORS))} file"
        )
    return read_tensors(files[:1])


def _without_prefix(state: State, prefixes: tuple[str, ...]) -> State:
    """Names without the prefix that a model with a head puts before the encoder's.

    The published BERTs still have TensorFlow's names in their LayerNorms, gamma and beta.
    """
    shorter = {}
    for name, tensor in state.items():
        prefix = next((p for p in prefixes if name.startswith(p)), "")
        short = name.removeprefix(prefix)
        short = short.replace("LayerNorm.gamma", "LayerNorm.weight")
        shorter[short.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return shorter


def _translate(
    found: Mapping[str, Tensor], rows: Iterable[tuple[str, str]], depth: int, source: str
) -> tuple[State, list[str]]:
    """Our names of all rows, and the names of `found` that none of them takes."""
    state, missing, taken = {}, [], set()
    for ours, theirs in rows:
        for layer in range(depth if "{i}" in ours else 1):
            for kind in range(2 if ours.endswith("*") else 1):
                names = _expand(theirs, layer, kind)
                missing += [name for name in names if name not in found]
                parts = [found[name].float() for name in names if name in found]
                if len(parts) == len(names):
                    state[_expand(ours, layer, kind)[0]] = (
                        torch.cat(parts) if parts[1:] else parts[0]
                    )
                taken.update(names)
    aside = sorted(found.keys() - taken)
    if missing:
        raise WeightsError(f"{source} lacks tensors:{listed(missing)}")
    if unknown := [name for name in aside if not _HEADS_OF_OTHERS.fullmatch(name)]:
        raise WeightsError(
            f"{source} has tensors that a model of depth {depth} does not:{listed(unknown)}"
        )
    return state, aside


def _expand(names: str, layer: int, kind: int) -> list[str]:
    """Fill in {i} and .*, and take parts apart."""
    filled = names.replace("{i}", str(layer)).replace("*", ("weight", "bias")[kind])
    return filled.split(" + ")
