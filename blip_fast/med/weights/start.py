"""A model to train: from nothing, from a ViT and a BERT, or from any BLIP checkpoint.

Parts of one kind of checkpoint become those of another as BLIP's finetuning scripts do it: what a
kind has twice is copied, what it has and its ancestor has not begins as pretraining begins.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from blip_fast.config import BlipConfig, Kind
from blip_fast.med.blip import MED, initialise
from blip_fast.med.vision import interpolate_positions
from blip_fast.med.weights.errors import WeightsError, listed
from blip_fast.med.weights.find import find, read_vocabulary
from blip_fast.med.weights.foreign import read_bert, read_vit
from blip_fast.med.weights.read import read_checkpoint
from blip_fast.text import Tokenizer

State = dict[str, Tensor]

_SIDE = re.compile(r"(cross_attention\.(?:query|key_value|proj))\.[01]\.")


def start(
    kind: Kind,
    *,
    config: BlipConfig,
    image_size: int,
    pretrained: str = "",
    vision_init: str = "",
    text_init: str = "",
    vocabulary: str = "",
    seed: int = 42,
) -> tuple[MED, Tokenizer, list[str]]:
    """A MED in float32 on the host, its tokenizer, and lines that say where its weights are from.

    Args:
        config: sizes of a model that is not `pretrained`.
        image_size: positions of a pretrained model are interpolated to it.
        pretrained: any BLIP checkpoint that `read_checkpoint` takes, of any kind.
        vision_init, text_init: see `read_vit` and `read_bert`.
        vocabulary: a vocab.txt; that of the checkpoint or BERT where none is given.
        seed: of weights that are new.

    Raises:
        WeightsError: where a starting point does not fit; every tensor concerned is listed.
        ValueError: where there is no vocabulary, or sizes do not fit each other.
    """
    tokenizer = read_vocabulary(Path(vocabulary)) if vocabulary else None
    if pretrained:
        checkpoint = read_checkpoint(
            pretrained, vocabulary=Path(vocabulary) if vocabulary else None
        )
        tokenizer, source = checkpoint.tokenizer, checkpoint.state
        vision = replace(checkpoint.config.vision, image_size=image_size)
        config = replace(checkpoint.config, kind=kind, vision=vision)
        source["vision.position"] = interpolate_positions(source["vision.position"], vision.grid)
        notes = [f"weights from {pretrained}, a checkpoint of kind {checkpoint.config.kind}"]
    else:
        config = replace(config, kind=kind)
        source, notes = _parts(config, vision_init, text_init)
        if tokenizer is None and text_init:
            tokenizer = find(text_init).tokenizer()
    if tokenizer is None:
        raise ValueError(
            "there is no vocabulary; set vocabulary to a BERT vocab.txt, one token a line"
        )
    tokenizer.check(config.text)
    model = MED(config)
    initialise(model, seed)
    return model, tokenizer, [*notes, *_fill(model, source)]


def _parts(config: BlipConfig, vision_init: str, text_init: str) -> tuple[State, list[str]]:
    state: State = {}
    notes = []
    for source, read in ((vision_init, read_vit), (text_init, read_bert)):
        if source:
            found, aside = read(source, config)
            state |= found
            notes.append(f"weights from {source}" + _named("; left aside", aside))
    return state, notes or ["weights from nothing"]


def _fill(model: MED, source: Mapping[str, Tensor]) -> list[str]:
    """Copy what a model has in common with a state; what it lacks, in lines."""
    new, misshapen = [], []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found = next((source[n] for n in ancestors(name) if n in source), None)
            if found is None or _of_another_memory(model, name, found):
                new.append(name)
            elif _grows(name, found, parameter):
                parameter[: len(found)] = found  # [DEC] and [ENC] keep what they begin with
            elif found.shape != parameter.shape:
                misshapen.append(f"{name} is {tuple(found.shape)}, not {tuple(parameter.shape)}")
            else:
                parameter.copy_(found)
    if misshapen:
        raise WeightsError(f"tensors do not fit the model:{listed(misshapen)}")
    return [f"new{_named('', new)}"] if new else []


def ancestors(name: str) -> list[str]:
    """Names that a parameter's value may have in another kind of checkpoint, the best first.

    The decoder's where it is the encoder's, and the other way round; the one cross-attention's
    where NLVR2 has two.
    """
    single = _SIDE.sub(r"\1.", name)
    names = [name, single]
    for mine, other in (("text_encoder.", "text_decoder."), ("text_decoder.", "text_encoder.")):
        if name.startswith(mine):
            names += [n.replace(mine, other, 1) for n in (name, single)]
    return list(dict.fromkeys(names))


def _of_another_memory(model: MED, name: str, found: Tensor) -> bool:
    """A VQA decoder reads question states, not images: of ViT-L's projection, which is wider,
    nothing can be kept (BLIP's script passes over it too)."""
    config = model.config
    return (
        config.kind == "vqa"
        and name.startswith("text_decoder.")
        and name.endswith("cross_attention.key_value.weight")
        and found.shape[1] == config.vision.width != config.text.width
    )


def _grows(name: str, found: Tensor, parameter: Tensor) -> bool:
    """Whether a BERT's vocabulary lacks the two tokens that BLIP adds."""
    return (
        name.endswith(("embeddings.word.weight", "lm_head.bias"))
        and found.shape[1:] == parameter.shape[1:]
        and len(found) + 2 == len(parameter)
    )


def _named(before: str, names: list[str]) -> str:
    """Tensors in one line: by name where there are few kinds of them, else by the model's parts."""
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    if len(kinds) > 8:
        kinds = Counter(name.split(".")[0] for name in names)
    shown = ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in sorted(kinds.items()))
    return f"{before}: {shown}" if names else ""
