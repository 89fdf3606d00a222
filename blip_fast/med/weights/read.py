"""From whatever a user names to a model: read, checked, in our names, and built."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_fast.config import KINDS, BlipConfig, Kind
from blip_fast.med.blip import MED, initialise
from blip_fast.med.pages import copy_to_large_pages
from blip_fast.med.weights.deduce import config_of, kind_of, layout_of
from blip_fast.med.weights.errors import WeightsError
from blip_fast.med.weights.files import read_tensors, sha256_of, sha256_of_tensors
from blip_fast.med.weights.find import Found, find, read_vocabulary
from blip_fast.med.weights.names import to_ours
from blip_fast.med.weights.table import Layout, is_training_only, parameter_shapes
from blip_fast.med.weights.theirs import config_from_theirs
from blip_fast.text import Tokenizer

FORMAT = "blip_fast"
VERSION = 1

# What may be taken out of a larger checkpoint: the parts of a pretrained model.
_PARTS: dict[Kind, tuple[Kind, ...]] = {"pretrain": ("caption", "retrieval")}


@dataclass(frozen=True)
class Checkpoint:
    """Weights and all that belongs to them.

    Attributes:
        config: of the model.
        state: tensors by our names, each tied tensor once, as the file has them in dtype.
        tokenizer: None where the file carries no vocabulary and none was given.
        source: what was asked for.
        layout: "blip_fast", "transformers" or "salesforce".
        sha256: of the weights file, all shards in order; of the tensors where there is no file.
        left_aside: tensors that were not needed: training-only ones by the file's names; parts
            of a pretrained model that `kind` does not ask for by ours.
        trained: False only for the packaged model as long as it has no weights.
    """

    config: BlipConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer | None
    source: str
    layout: Layout
    sha256: str
    left_aside: list[str]
    trained: bool


def read_checkpoint(
    source: str | Path, *, kind: Kind | None = None, vocabulary: Path | None = None
) -> Checkpoint:
    """Read a checkpoint and check every tensor of it.

    Args:
        source: a folder written by `write_checkpoint` or by transformers; a .pth, .pt or .bin
            file of Salesforce or LAVIS; a .safetensors file; a hub id "org/name"; or "scenes",
            the small model in the package.
        kind: the kind of model wanted; a pretrained checkpoint also gives "caption" and
            "retrieval". Default: what the file is.
        vocabulary: a vocab.txt to use in place of what lies beside the weights.

    Raises:
        WeightsError: where there is no such checkpoint; where the file is truncated, or would
            run code; where tensors are missing, unexpected, misshapen, not finite, or tied and
            yet different; where it is of another kind; where the vocabulary is another model's.
    """
    if kind is not None and kind not in KINDS:
        raise WeightsError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    found = find(source)
    tokenizer = found.tokenizer() if vocabulary is None else read_vocabulary(Path(vocabulary))
    try:
        if found.weights:
            checkpoint = _read(str(source), found, tokenizer)
        else:
            checkpoint = _untrained(str(source), found, tokenizer)
        _check_tokenizer(tokenizer, checkpoint.config)
        return checkpoint if kind is None else _part(checkpoint, kind)
    except WeightsError as error:
        named = str(error) if str(source) in str(error) else f"{source}: {error}"
        raise WeightsError(named) from None


def from_live_transformers(hf_model: Any, tokenizer: Tokenizer | None = None) -> Checkpoint:
    """The weights of a transformers model in memory; shared wherever nothing is fused.

    Args:
        hf_model: BlipForConditionalGeneration, BlipForQuestionAnswering or
            BlipForImageTextRetrieval.
        tokenizer: of the model; needed where its vocabulary is not BERT's.

    Raises:
        WeightsError: where it is another model, or one that does not fit its own config.
    """
    state = {name: tensor.detach() for name, tensor in hf_model.state_dict().items()}
    if offloaded := sum(tensor.is_meta for tensor in state.values()):
        raise WeightsError(f"{offloaded} tensors of the model are offloaded; load it whole first")
    if layout_of(state) != "transformers":
        raise WeightsError(f"{type(hf_model).__name__} is not a BLIP of the transformers library")
    config = config_from_theirs(hf_model.config.to_dict(), kind_of(state), tokenizer)
    _check_tokenizer(tokenizer, config)
    ours = to_ours(state, config, "transformers")
    return Checkpoint(
        config=config,
        state=ours,
        tokenizer=tokenizer,
        source=str(getattr(hf_model, "name_or_path", "") or type(hf_model).__name__),
        layout="transformers",
        sha256=sha256_of_tensors(ours),
        left_aside=sorted(filter(is_training_only, state)),
        trained=True,
    )


def build(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str) -> MED:
    """The model of a checkpoint, for inference: evaluation mode, no gradients.

    Nothing is allocated but the weights; they share the checkpoint's storage where dtype and
    device are already those asked for.
    """
    with torch.device("meta"):
        model = MED(checkpoint.config)
    state = _converted(checkpoint.state, dtype, torch.device(device))
    # Not strict: tied parameters have several names in a module and one in a checkpoint, whose
    # completeness was checked when it was read.
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def _converted(
    state: dict[str, Tensor], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """On a CPU, matrices that must be copied anyway go where they are read fastest.

    Those of each stack of layers go together, and so are freed together when int8 replaces them.
    """
    converted: dict[str, Tensor] = {}
    stacks: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, tensor in state.items():
        if device.type == "cpu" and tensor.ndim == 2 and tensor.dtype != dtype:
            stacks[tuple(name.split(".")[:2])].append(name)
        else:
            converted[name] = tensor.to(device=device, dtype=dtype)
    for names in stacks.values():
        copies = copy_to_large_pages([state[name] for name in names], dtype)
        converted.update(zip(names, copies, strict=True))
    return converted


def _read(source: str, found: Found, tokenizer: Tokenizer | None) -> Checkpoint:
    state = read_tensors(found.weights)
    layout = layout_of(state)
    config = _config(found, state, layout, tokenizer)
    return Checkpoint(
        config=config,
        state=to_ours(state, config, layout),
        tokenizer=tokenizer,
        source=source,
        layout=layout,
        sha256=sha256_of(found.weights),
        left_aside=sorted(filter(is_training_only, state)),
        trained=True,
    )


def _config(
    found: Found, state: dict[str, Tensor], layout: Layout, tokenizer: Tokenizer | None
) -> BlipConfig:
    """From config.json where the layout has one, else from the tensors' shapes."""
    if layout == "salesforce":
        return config_of(state, layout, kind_of(state), tokenizer)
    values = found.config()
    if layout == "blip_fast":
        if values is None:
            raise WeightsError(
                f"{found.folder} has no config.json, which weights of this layout need"
            )
        return our_config(values)
    kind = kind_of(state)
    if values is None:
        return config_of(state, layout, kind, tokenizer)
    return config_from_theirs(values, kind, tokenizer)


def our_config(values: dict[str, Any]) -> BlipConfig:
    """The config in a config.json of our format.

    Raises:
        WeightsError: where it is of another format or version, or holds what we do not know.
    """
    values = dict(values)
    marks = values.pop("format", None), values.pop("version", None)
    if marks != (FORMAT, VERSION):
        raise WeightsError(
            f"config.json is of format {marks[0]!r}, version {marks[1]!r}; "
            f"these weights need {FORMAT!r}, {VERSION}"
        )
    try:
        return BlipConfig.from_dict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"config.json does not describe a BLIP: {error}") from None


def _untrained(source: str, found: Found, tokenizer: Tokenizer | None) -> Checkpoint:
    config = our_config(found.config() or {})
    model = MED(config)
    initialise(model, seed=0)
    state = {name: p.detach() for name, p in model.named_parameters()}
    sha256 = sha256_of_tensors(state)
    return Checkpoint(config, state, tokenizer, source, "blip_fast", sha256, [], trained=False)


def _check_tokenizer(tokenizer: Tokenizer | None, config: BlipConfig) -> None:
    if tokenizer is not None:
        try:
            tokenizer.check(config.text)
        except ValueError as error:
            raise WeightsError(str(error)) from None


def _part(checkpoint: Checkpoint, kind: Kind) -> Checkpoint:
    """The part of a checkpoint that a model of `kind` is made of."""
    own = checkpoint.config.kind
    if kind == own:
        return checkpoint
    if kind not in _PARTS.get(own, ()):
        gives = ", ".join((own, *_PARTS.get(own, ())))
        raise WeightsError(f"this is a {own} checkpoint, which gives {gives}; not {kind}")
    config = replace(checkpoint.config, kind=kind)
    state, used = {}, set()
    for name in parameter_shapes(config):
        # What the decoder shares with the encoder is kept under the encoder's name.
        kept = name
        if name not in checkpoint.state:
            kept = name.replace("text_decoder.", "text_encoder.", 1)
        state[name] = checkpoint.state[kept]
        used.add(kept)
    aside = [*checkpoint.left_aside, *(n for n in checkpoint.state if n not in used)]
    return replace(checkpoint, config=config, state=state, left_aside=aside)
