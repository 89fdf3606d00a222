"""Random state dicts as Salesforce's training scripts save them, spelled out name by name.

Independent of the tables under test: the names here come from the modules of BLIP's vit.py,
med.py and nlvr_encoder.py.
"""

from __future__ import annotations

import torch
from factories import tiny_config
from torch import Tensor

from blip_fast.config import BlipConfig, Kind

State = dict[str, Tensor]

# The kinds that the transformers library has a class for.
HF: dict[Kind, str] = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "retrieval": "BlipForImageTextRetrieval",
}


class _Filler:
    """Adds tensors to a state: weights of spread 0.1, LayerNorms around 1 and 0."""

    def __init__(self, seed: int) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int) -> None:
        self.state[name] = torch.randn(*shape, generator=self.generator) * 0.1

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self.tensor(f"{name}.weight", outputs, inputs)
        self.tensor(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> None:
        self.tensor(f"{name}.weight", width)
        self.state[f"{name}.weight"] += 1
        self.tensor(f"{name}.bias", width)


def _vision(fill: _Filler, config: BlipConfig) -> None:
    vision, name = config.vision, "visual_encoder"
    w, p = vision.width, vision.patch_size
    fill.tensor(f"{name}.cls_token", 1, 1, w)
    fill.tensor(f"{name}.pos_embed", 1, vision.tokens, w)
    fill.tensor(f"{name}.patch_embed.proj.weight", w, 3, p, p)
    fill.tensor(f"{name}.patch_embed.proj.bias", w)
    for i in range(vision.depth):
        block = f"{name}.blocks.{i}"
        fill.norm(f"{block}.norm1", w)
        fill.linear(f"{block}.attn.qkv", w, 3 * w)
        fill.linear(f"{block}.attn.proj", w, w)
        fill.norm(f"{block}.norm2", w)
        fill.linear(f"{block}.mlp.fc1", w, vision.mlp_width)
        fill.linear(f"{block}.mlp.fc2", vision.mlp_width, w)
    fill.norm(f"{name}.norm", w)


def _attention(fill: _Filler, name: str, width: int, source: int) -> None:
    fill.linear(f"{name}.query", width, width)
    fill.linear(f"{name}.key", source, width)
    fill.linear(f"{name}.value", source, width)


def _bert(fill: _Filler, name: str, config: BlipConfig, memory_width: int) -> None:
    text, w = config.text, config.text.width
    fill.tensor(f"{name}.embeddings.word_embeddings.weight", text.vocab_size, w)
    fill.tensor(f"{name}.embeddings.position_embeddings.weight", text.max_positions, w)
    fill.norm(f"{name}.embeddings.LayerNorm", w)
    fill.state[f"{name}.embeddings.position_ids"] = torch.arange(text.max_positions)[None]
    for i in range(text.depth):
        layer = f"{name}.encoder.layer.{i}"
        _attention(fill, f"{layer}.attention.self", w, w)
        fill.linear(f"{layer}.attention.output.dense", w, w)
        fill.norm(f"{layer}.attention.output.LayerNorm", w)
        cross = f"{layer}.crossattention"
        for side in ("0", "1") if config.kind == "nlvr" else ("",):
            _attention(fill, f"{cross}.self{side}", w, memory_width)
            fill.linear(f"{cross}.output.dense{side}", w, w)
        if config.kind == "nlvr" and i >= text.depth // 2:
            fill.linear(f"{cross}.output.merge_layer", 2 * w, w)
        fill.norm(f"{cross}.output.LayerNorm", w)
        fill.linear(f"{layer}.intermediate.dense", w, text.mlp_width)
        fill.linear(f"{layer}.output.dense", text.mlp_width, w)
        fill.norm(f"{layer}.output.LayerNorm", w)


def _decoder(fill: _Filler, config: BlipConfig) -> None:
    w = config.text.width
    _bert(fill, "text_decoder.bert", config, w if config.kind == "vqa" else config.vision.width)
    head = "text_decoder.cls.predictions"
    fill.linear(f"{head}.transform.dense", w, w)
    fill.norm(f"{head}.transform.LayerNorm", w)
    fill.tensor(f"{head}.bias", config.text.vocab_size)


def _tie(state: State, kind: Kind) -> None:
    head = "text_decoder.cls.predictions"
    if kind == "pretrain":
        for name in state:
            if name.startswith("text_decoder.bert.") and ".attention." not in name:
                state[name] = state[name.replace("text_decoder.bert.", "text_encoder.")]
    words = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state[f"{head}.decoder.weight"] = words
    state[f"{head}.decoder.bias"] = state[f"{head}.bias"]


def random_salesforce(kind: Kind, seed: int = 0, config: BlipConfig | None = None) -> State:
    """All that inference needs, and the position_ids buffers; tied tensors under every name."""
    config = config or tiny_config(kind)
    fill = _Filler(seed)
    _vision(fill, config)
    w = config.text.width
    if kind != "caption":
        _bert(fill, "text_encoder", config, config.vision.width)
    if kind in ("pretrain", "caption", "vqa"):
        _decoder(fill, config)
        _tie(fill.state, kind)
    if kind in ("pretrain", "retrieval"):
        fill.linear("vision_proj", config.vision.width, config.embed_width)
        fill.linear("text_proj", w, config.embed_width)
        fill.linear("itm_head", w, 2)
        fill.state["temp"] = torch.tensor(0.06)
    if kind == "nlvr":
        fill.linear("cls_head.0", w, w)
        fill.linear("cls_head.2", w, 2)
    return fill.state


def momentum_and_queues(state: State) -> State:
    """What training adds to a pretraining or retrieval checkpoint."""
    copied = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")
    momentum = {
        name.replace(".", "_m.", 1): tensor
        for name, tensor in state.items()
        if name.startswith(copied)
    }
    return {
        **momentum,
        "image_queue": torch.randn(32, 8),
        "text_queue": torch.randn(32, 8),
        "idx_queue": torch.full((1, 8), -100),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "ptr_queue": torch.zeros(1, dtype=torch.long),
    }


def assert_identical(found: State, expected: State) -> None:
    """The same names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name
