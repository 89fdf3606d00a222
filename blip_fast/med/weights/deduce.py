"""What model a bare state dict belongs to: its layout, its kind, its sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from blip_fast.config import BlipConfig, Kind, TextConfig, VisionConfig
from blip_fast.med.weights.errors import WeightsError, listed
from blip_fast.med.weights.table import LAYOUTS, Layout, vision_name
from blip_fast.text import Tokenizer

# Not in the tensors: every published BLIP has heads 64 wide, and its vision LayerNorms were
# trained with 1e-6. BERT's vocabularies keep [CLS] and [SEP] where these ids are.
_HEAD_WIDTH = 64
_BERT_IDS = {"pad_id": 0, "cls_id": 101, "sep_id": 102}


def layout_of(names: Iterable[str]) -> Layout:
    """Which layout has these names.

    Raises:
        WeightsError: where none has, naming some.
    """
    names = set(names)
    if "logit_scale" in names:
        raise WeightsError(
            "these are the weights of transformers' BlipModel, which match no BLIP checkpoint; "
            "load BlipForConditionalGeneration, BlipForQuestionAnswering or "
            "BlipForImageTextRetrieval"
        )
    for layout in LAYOUTS:
        if vision_name("vision.cls_token", layout) in names:
            return layout
    marks = ", ".join(vision_name("vision.cls_token", layout) for layout in LAYOUTS)
    raise WeightsError(
        f"these are not the weights of a BLIP: none of {marks} is among the {len(names)} tensors"
        + listed(sorted(names))
    )


def kind_of(names: Iterable[str]) -> Kind:
    """The kind of a Salesforce or transformers checkpoint, from the parts it carries.

    Raises:
        WeightsError: where no kind has just these parts.
    """
    names = list(names)
    if any(".crossattention.self0." in name for name in names):
        return "nlvr"
    parts = ("text_encoder.", "text_decoder.", "itm_head.")
    carried = tuple(any(n.startswith(part) for n in names) for part in parts)
    kinds: dict[tuple[bool, ...], Kind] = {
        (True, True, True): "pretrain",
        (True, False, True): "retrieval",
        (False, True, False): "caption",
        (True, True, False): "vqa",
    }
    if carried not in kinds:
        found = [part + "*" for part, there in zip(parts, carried, strict=True) if there]
        raise WeightsError(
            f"of text_encoder.*, text_decoder.* and itm_head.* there is {found or 'nothing'}; "
            f"no kind of BLIP checkpoint ({', '.join(kinds.values())}, nlvr) has exactly that"
        )
    return kinds[carried]


def config_of(
    state: Mapping[str, Tensor], layout: Layout, kind: Kind, tokenizer: Tokenizer | None
) -> BlipConfig:
    """The config that a Salesforce or transformers state dict implies by its shapes.

    Heads are 64 wide and the vision LayerNorms' epsilon 1e-6, as Salesforce trained them. [DEC]
    and [ENC] are the last two tokens; the other special ids come from the tokenizer where there
    is one, else they are BERT's.

    Raises:
        WeightsError: where a tensor that tells a size is missing or makes no sense.
    """
    stack = "text_decoder.bert." if kind == "caption" else "text_encoder."
    try:
        return BlipConfig(
            kind=kind,
            vision=_vision(state, layout),
            text=_text(state, stack, tokenizer),
            embed_width=_shape(state, "vision_proj.weight", 2)[0]
            if kind in ("pretrain", "retrieval")
            else BlipConfig().embed_width,
        )
    except ValueError as error:
        raise WeightsError(f"the shapes are not those of a BLIP: {error}") from None


def special_ids(vocab_size: int, tokenizer: Tokenizer | None) -> dict[str, int]:
    """pad_id, cls_id and sep_id of a vocabulary: the tokenizer's, else BERT's.

    Raises:
        WeightsError: where there is no tokenizer and BERT's ids do not fit the vocabulary.
    """
    if tokenizer is not None:
        names = {"pad_id": "[PAD]", "cls_id": "[CLS]", "sep_id": "[SEP]"}
        return {field: tokenizer.id_of(token) for field, token in names.items()}
    if max(_BERT_IDS.values()) >= vocab_size:
        raise WeightsError(
            f"a vocabulary of {vocab_size} tokens is not BERT's, so [CLS] and [SEP] are unknown; "
            "give the vocabulary: a vocab.txt, one token a line"
        )
    return dict(_BERT_IDS)


def _vision(state: Mapping[str, Tensor], layout: Layout) -> VisionConfig:
    def name(row: str, part: str = "") -> str:
        return vision_name(row, layout).replace("*", part).replace("{i}", "0")

    width = _shape(state, name("vision.cls_token"), 3)[2]
    patch = _shape(state, name("vision.patch_embed.*", "weight"), 4)[3]
    tokens = _shape(state, name("vision.position"), 3)[1]
    grid = round((tokens - 1) ** 0.5)
    if 1 + grid**2 != tokens:
        raise WeightsError(f"{tokens} image positions are not a class token and a square grid")
    prefix = vision_name("vision.blocks.{i}.norm1.*", layout).split("{i}")[0]
    return VisionConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        depth=_depth(state, prefix),
        heads=_heads("vision", width),
        mlp_width=_shape(state, name("vision.blocks.{i}.fc1.*", "weight"), 2)[0],
    )


def _text(state: Mapping[str, Tensor], stack: str, tokenizer: Tokenizer | None) -> TextConfig:
    vocab_size, width = _shape(state, f"{stack}embeddings.word_embeddings.weight", 2)
    return TextConfig(
        vocab_size=vocab_size,
        width=width,
        depth=_depth(state, f"{stack}encoder.layer."),
        heads=_heads("text", width),
        mlp_width=_shape(state, f"{stack}encoder.layer.0.intermediate.dense.weight", 2)[0],
        max_positions=_shape(state, f"{stack}embeddings.position_embeddings.weight", 2)[0],
        dec_id=vocab_size - 2,
        enc_id=vocab_size - 1,
        **special_ids(vocab_size, tokenizer),
    )


def _heads(what: str, width: int) -> int:
    if width % _HEAD_WIDTH or not width:
        raise WeightsError(f"the {what} width {width} is not a multiple of {_HEAD_WIDTH}, a head's")
    return width // _HEAD_WIDTH


def _shape(state: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in state:
        raise WeightsError(f"{name} is missing; a size of the model is read from it")
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise WeightsError(f"{name} has shape {list(shape)}, where {axes} axes are expected")
    return shape


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    layers = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({m[1] for name in state if (m := layers.match(name))})
