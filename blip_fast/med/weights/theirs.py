"""The transformers library's config.json and tokenizer files, read into ours and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip_fast.config import IMAGE_MEAN, IMAGE_STD, BlipConfig, Kind, TextConfig, VisionConfig
from blip_fast.med.weights.deduce import special_ids
from blip_fast.med.weights.errors import WeightsError
from blip_fast.text import Tokenizer

ARCHITECTURES: dict[Kind, str] = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "retrieval": "BlipForImageTextRetrieval",
}

# Our field, their key, and the default of their class: a key at its default may be left out of
# the file. Their text heads default to 8 although every published model has 12.
_VISION = (
    ("image_size", "image_size", 384),
    ("patch_size", "patch_size", 16),
    ("width", "hidden_size", 768),
    ("depth", "num_hidden_layers", 12),
    ("heads", "num_attention_heads", 12),
    ("mlp_width", "intermediate_size", 3072),
    ("layer_norm_eps", "layer_norm_eps", 1e-5),
)
_TEXT = (
    ("vocab_size", "vocab_size", 30524),
    ("width", "hidden_size", 768),
    ("depth", "num_hidden_layers", 12),
    ("heads", "num_attention_heads", 8),
    ("mlp_width", "intermediate_size", 3072),
    ("max_positions", "max_position_embeddings", 512),
    ("layer_norm_eps", "layer_norm_eps", 1e-12),
    ("pad_id", "pad_token_id", 0),
    ("sep_id", "sep_token_id", 102),
    ("dec_id", "bos_token_id", 30522),
)
_EMBED_WIDTH = ("image_text_hidden_size", 256)
_ACTIVATION = ("hidden_act", "gelu")


def config_from_theirs(
    theirs: Mapping[str, Any], kind: Kind, tokenizer: Tokenizer | None
) -> BlipConfig:
    """Our config out of theirs.

    [ENC] is the token after [DEC], as BLIP appends them; [CLS], which their config does not
    hold, comes from the tokenizer where there is one, else it is BERT's.

    Raises:
        WeightsError: where the model is no BLIP, or not one that we compute.
    """
    if theirs.get("model_type", "blip") != "blip":
        raise WeightsError(f"config.json is of a {theirs['model_type']!r} model, not of a 'blip'")
    vision = _section(theirs, "vision_config", _VISION)
    text = _section(theirs, "text_config", _TEXT)
    for side in ("image_size", "patch_size"):
        vision[side] = _one_side(side, vision[side])
    text["enc_id"] = text["dec_id"] + 1
    text["cls_id"] = special_ids(text["vocab_size"], tokenizer)["cls_id"]
    try:
        return BlipConfig(
            kind=kind,
            vision=VisionConfig(**vision),
            text=TextConfig(**text),
            embed_width=theirs.get(*_EMBED_WIDTH),
        )
    except (ValueError, TypeError) as error:
        raise WeightsError(f"config.json does not describe a BLIP: {error}") from None


def _section(
    theirs: Mapping[str, Any], name: str, table: tuple[tuple[str, str, Any], ...]
) -> dict[str, Any]:
    section = theirs.get(name) or {}
    key, computed = _ACTIVATION
    if section.get(key, computed) != computed:
        raise WeightsError(
            f"{name}.{key} is {section[key]!r}; BLIP has {computed!r}, the exact GELU, and "
            "no other is computed"
        )
    return {ours: section.get(key, default) for ours, key, default in table}


def _one_side(key: str, size: Any) -> Any:
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise WeightsError(f"vision_config.{key} is {list(size)}; it must be square")
        return size[0]
    return size


def config_to_theirs(config: BlipConfig, dtype: str) -> dict[str, Any]:
    """Their config.json for a model of ours; every key that their model reads is written."""
    vision = {key: getattr(config.vision, ours) for ours, key, _ in _VISION}
    text = {key: getattr(config.text, ours) for ours, key, _ in _TEXT}
    key, activation = _ACTIVATION
    return {
        "architectures": [ARCHITECTURES[config.kind]],
        "model_type": "blip",
        "dtype": dtype,
        _EMBED_WIDTH[0]: config.embed_width,
        "text_config": {
            **text,
            key: activation,
            "model_type": "blip_text_model",
            "encoder_hidden_size": config.vision.width,
            "eos_token_id": config.text.sep_id,
            "is_decoder": True,
        },
        "vision_config": {**vision, key: activation, "model_type": "blip_vision_model"},
    }


def processor_to_theirs(config: BlipConfig) -> dict[str, Any]:
    """Their preprocessor_config.json: what BLIP does to an image before it is seen."""
    side = config.vision.image_size
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }


def tokenizer_to_theirs(config: BlipConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Their tokenizer_config.json: BERT's tokenizer with [DEC] and [ENC] behind its vocabulary."""
    added = {
        str(tokenizer.id_of(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
    }
    return {
        "tokenizer_class": "BertTokenizer",
        "processor_class": "BlipProcessor",
        "do_lower_case": True,
        "model_max_length": config.text.max_positions,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "bos_token": "[DEC]",
        "additional_special_tokens": ["[ENC]"],
        "added_tokens_decoder": added,
    }
