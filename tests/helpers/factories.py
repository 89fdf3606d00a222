"""Small random models and vocabularies that many tests share.

Sizes are the least that still exercise everything: heads 64 wide, two layers, a vision width
other than the text's where the kind allows it. Weights spread widely, so that outputs differ.
"""

from __future__ import annotations

import string
from typing import Any

import torch

from blip_fast.config import BlipConfig, Kind, TextConfig, VisionConfig
from blip_fast.med.blip import MED

VOCAB_SIZE = 128  # with [DEC] and [ENC]; the special ids are BERT's


def tiny_vocabulary() -> list[str]:
    """126 tokens with [PAD] at 0 and [UNK] [CLS] [SEP] [MASK] at 100..103, as in BERT's file."""
    letters = [*string.ascii_lowercase, *("##" + c for c in string.ascii_lowercase)]
    before = [*letters, *string.digits, *".,!?'-", *_WORDS[:31]]
    return ["[PAD]", *before, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS[31:53]]


_WORDS = (
    "the of in on and with at is are to picture photo red blue green black white yellow dog cat "
    "bird horse man woman child boy girl car bus tree house street park beach water sky ball box "
    "table chair two three four small big left right above below what who how many"
).split()


def tiny_config(kind: Kind, vision_width: int = 192) -> BlipConfig:
    """Images of 32 pixels in patches of 8; two layers; text 128 wide."""
    return BlipConfig(
        kind=kind,
        vision=VisionConfig(
            image_size=32,
            patch_size=8,
            width=vision_width,
            depth=2,
            heads=vision_width // 64,
            mlp_width=256,
        ),
        text=TextConfig(
            vocab_size=VOCAB_SIZE,
            width=128,
            depth=2,
            heads=2,
            mlp_width=256,
            max_positions=64,
            dec_id=VOCAB_SIZE - 2,
            enc_id=VOCAB_SIZE - 1,
        ),
        embed_width=32 if kind in ("pretrain", "retrieval") else 256,
    )


def randomise(parameters: Any, seed: int) -> None:
    """Fill (name, tensor) pairs: matrices with standard deviation 0.1, vectors around what they
    start from, LayerNorm weights around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in parameters:
            noise = torch.randn(tensor.shape, generator=generator) * 0.1
            is_scale = tensor.ndim == 1 and name.endswith("weight")
            tensor.copy_(noise + 1 if is_scale else noise)
            if name == "temperature.value":
                tensor.fill_(0.05 + 0.01 * seed)


def random_med(kind: Kind, seed: int = 0, config: BlipConfig | None = None) -> MED:
    """A model for inference, of `tiny_config(kind)` where no config is given."""
    model = MED(config or tiny_config(kind))
    randomise(model.named_parameters(), seed)
    return model.eval().requires_grad_(False)


def hf_tiny(class_name: str, seed: int = 0, **text: Any) -> Any:
    """A model of the transformers library: the name of one of its three BLIP classes.

    Args:
        text: other values of its text config.
    """
    import transformers

    config = transformers.BlipConfig(
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": VOCAB_SIZE - 2,
            "sep_token_id": 102,
            "pad_token_id": 0,
            **text,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        image_text_hidden_size=32,
    )
    model = getattr(transformers, class_name)(config)
    randomise(model.named_parameters(), seed)
    return model.eval().requires_grad_(False)
