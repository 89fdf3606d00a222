"""Checkpoints written: whole or not at all, config last."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.med.blip import MED
from blip_fast.med.quantize import is_quantized
from blip_fast.med.weights.deduce import config_of
from blip_fast.med.weights.errors import WeightsError
from blip_fast.med.weights.find import CONFIG, MODEL, VOCABULARY
from blip_fast.med.weights.names import from_ours
from blip_fast.med.weights.read import FORMAT, VERSION
from blip_fast.med.weights.table import LAYOUTS, Layout
from blip_fast.med.weights.theirs import (
    ARCHITECTURES,
    config_to_theirs,
    processor_to_theirs,
    tokenizer_to_theirs,
)
from blip_fast.text import Tokenizer

_SALESFORCE_FILE = "model.pth"
_Writer = Callable[[Path], object]


def write_checkpoint(model: MED, tokenizer: Tokenizer | None, folder: Path, layout: Layout) -> Path:
    """Write a model into a folder, which is made where it does not exist.

    Args:
        tokenizer: written too where there is one.
        layout: "blip_fast" holds everything. "transformers" is a folder for `from_pretrained`
            and holds caption, vqa and retrieval models; it has no temperature. "salesforce" is a
            .pth file, {"model": state}, of tensors alone: a reader takes the LayerNorms' epsilons
            as 1e-6 and 1e-12, whatever the model's are.

    Returns:
        What `read_checkpoint` reads: the folder, or the .pth file in it.

    Raises:
        WeightsError: where the layout cannot hold the model.
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    if is_quantized(model):
        raise WeightsError(
            "the model's weights are int8; save it as it was before, or copy its file"
        )
    config = model.config
    _check_fits(config, tokenizer, layout)
    ours = {name: p.detach().cpu() for name, p in model.named_parameters()}
    state = {n: t.contiguous() for n, t in from_ours(ours, config, layout).items()}
    if layout == "salesforce":
        _check_deducible(config, state, tokenizer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "salesforce":
        _replace_all(folder, {**_vocabulary(tokenizer), _SALESFORCE_FILE: _pickle(state)})
        return folder / _SALESFORCE_FILE
    files: dict[str, _Writer] = {MODEL: _safetensors(state), **_vocabulary(tokenizer)}
    if layout == "transformers":
        if tokenizer is not None:
            files["tokenizer_config.json"] = _json(tokenizer_to_theirs(config, tokenizer))
        files["preprocessor_config.json"] = _json(processor_to_theirs(config))
        dtype = str(model.dtype).removeprefix("torch.")
        files[CONFIG] = _json(config_to_theirs(config, dtype))
    else:
        files[CONFIG] = _json({"format": FORMAT, "version": VERSION, **config.to_dict()})
    _replace_all(folder, files)
    return folder


def _check_fits(config: BlipConfig, tokenizer: Tokenizer | None, layout: Layout) -> None:
    if tokenizer is not None:
        try:
            tokenizer.check(config.text)
        except ValueError as error:
            raise WeightsError(str(error)) from None
    if layout != "transformers":
        return
    if config.kind not in ARCHITECTURES:
        raise WeightsError(
            f"the transformers library has no class for a {config.kind} model, only for "
            f"{', '.join(ARCHITECTURES)}; the layouts blip_fast and salesforce can hold it"
        )
    if config.kind == "vqa" and config.vision.width != config.text.width:
        raise WeightsError(
            "the transformers library's VQA decoder has cross-attention of the vision width "
            f"{config.vision.width}, this model of its text width {config.text.width}; "
            "the layouts blip_fast and salesforce can hold it"
        )
    if config.text.enc_id != config.text.dec_id + 1:
        raise WeightsError(
            f"[ENC] is token {config.text.enc_id} and [DEC] {config.text.dec_id}; the "
            "transformers layout stores [DEC]'s id alone and takes [ENC]'s for the next one"
        )


def _check_deducible(
    config: BlipConfig, state: dict[str, Tensor], tokenizer: Tokenizer | None
) -> None:
    """Refuse a model whose sizes a reader of bare tensors would get wrong."""
    deduced = config_of(state, "salesforce", config.kind, tokenizer)
    found, expected = deduced.to_dict(), config.to_dict()
    wrong = [
        f"{part} {name} {value} (would be read as {found[part][name]})"
        for part in ("vision", "text")
        for name, value in expected[part].items()
        if name != "layer_norm_eps" and found[part][name] != value
    ]
    if wrong:
        raise WeightsError(
            "the salesforce layout holds tensors alone, from which these could not be told: "
            f"{', '.join(wrong)}; the layout blip_fast can hold this model"
        )


def _replace_all(folder: Path, files: dict[str, _Writer]) -> None:
    """Write all files beside their places, then move them there in order, the last one last.

    An old config.json goes first: whoever looks in between finds a folder without one, never one
    model's config beside another's weights.
    """
    suffix = f".{os.getpid()}.tmp"
    try:
        for name, write in files.items():
            write(folder / (name + suffix))
        if CONFIG in files:
            (folder / CONFIG).unlink(missing_ok=True)
        for name in files:
            os.replace(folder / (name + suffix), folder / name)
    finally:
        for name in files:
            (folder / (name + suffix)).unlink(missing_ok=True)


def _vocabulary(tokenizer: Tokenizer | None) -> dict[str, _Writer]:
    return {} if tokenizer is None else {VOCABULARY: tokenizer.write}


def _safetensors(state: dict[str, Tensor]) -> _Writer:
    return lambda path: save_file(state, path, metadata={"format": "pt"})


def _pickle(state: dict[str, Tensor]) -> _Writer:
    return lambda path: torch.save({"model": state}, path)


def _json(values: dict[str, object]) -> _Writer:
    text = json.dumps(values, indent=2) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")
