"""Where a checkpoint's files are: a folder, a file, the hub, or the model in the package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_fast.med.weights.errors import WeightsError
from blip_fast.med.weights.files import PICKLES, SAFETENSORS
from blip_fast.text import Tokenizer

SCENES = "scenes"
CONFIG = "config.json"
VOCABULARY = "vocab.txt"
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"

_TOKENIZER = "tokenizer.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OFFLINE = (
    "Without a network, give a folder (config.json, model.safetensors, vocab.txt), a .pth or "
    f".safetensors file, or {SCENES!r}, the small model that comes with the package"
)


@dataclass(frozen=True)
class Found:
    """The files of one checkpoint.

    Attributes:
        weights: one file, or all shards in order; none for the packaged model without weights.
        folder: where config.json and the vocabulary are, if they are anywhere.
    """

    weights: tuple[Path, ...]
    folder: Path

    def config(self) -> dict[str, Any] | None:
        """config.json, or None where there is none."""
        path = self.folder / CONFIG
        return read_json(path) if path.is_file() else None

    def tokenizer(self) -> Tokenizer | None:
        """From vocab.txt, else from tokenizer.json; None where there is neither."""
        if (path := self.folder / VOCABULARY).is_file():
            return read_vocabulary(path)
        if (path := self.folder / _TOKENIZER).is_file():
            return _read_tokenizer_json(path)
        return None


def find(source: str | Path) -> Found:
    """The files that `source` stands for; the packaged model comes before a file of its name.

    Raises:
        WeightsError: where there is nothing of that name, on this machine or on the hub.
    """
    path = Path(source)
    if str(source) == SCENES:
        folder = Path(__file__).parents[2] / "scenes" / "model"
        return Found((folder / MODEL,) if (folder / MODEL).is_file() else (), folder)
    if path.is_file():
        if path.suffix not in (*PICKLES, SAFETENSORS):
            known = ", ".join((*PICKLES, SAFETENSORS))
            raise WeightsError(f"{path} ends in {path.suffix!r}; weights end in one of {known}")
        return Found((path,), path.parent)
    if path.is_dir():
        return _find_in(path)
    if _HUB_ID.fullmatch(str(source)) and path.suffix not in (*PICKLES, SAFETENSORS):
        return _find_on_hub(str(source))
    raise WeightsError(f"there is no file or folder {path}. {_OFFLINE}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises a WeightsError where the file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def read_vocabulary(path: Path) -> Tokenizer:
    """A vocab.txt. Raises a WeightsError where the file is none."""
    try:
        return Tokenizer.read(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a vocabulary: {error}") from None


def _read_tokenizer_json(path: Path) -> Tokenizer:
    """The vocabulary of a fast tokenizer's file, which transformers 5 writes and nothing else."""
    tokenizer = read_json(path)
    try:
        ids = tokenizer["model"]["vocab"]
        vocabulary = sorted(ids, key=ids.__getitem__)
        added = {token["content"] for token in tokenizer.get("added_tokens") or ()}
        gaps = [ids[token] for token in vocabulary] != list(range(len(vocabulary)))
    except (KeyError, TypeError, AttributeError):
        raise WeightsError(f"{path} holds no WordPiece vocabulary (model.vocab)") from None
    if gaps:
        raise WeightsError(f"{path}: the ids of its {len(ids)} tokens are not 0, 1, 2, ...")
    if strange := sorted(added - set(ids) - {"[DEC]", "[ENC]"}):
        raise WeightsError(f"{path} adds tokens that no BLIP has: {', '.join(strange)}")
    if vocabulary[-2:] == ["[DEC]", "[ENC]"]:
        vocabulary = vocabulary[:-2]  # our tokenizer appends them itself
    try:
        return Tokenizer(vocabulary)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None


def _find_in(folder: Path) -> Found:
    if (folder / MODEL).is_file():
        weights = [folder / MODEL]
    elif (folder / INDEX).is_file():
        weights = _shards(folder / INDEX)
    elif (folder / PICKLE).is_file():
        weights = [folder / PICKLE]
    else:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (*PICKLES, SAFETENSORS))
        hint = f"; it holds {', '.join(others)}: name the file itself" if others else ""
        raise WeightsError(f"the folder {folder} has no {MODEL}, {INDEX} or {PICKLE}{hint}")
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"the folder {folder} has {weights[0].name} but no {CONFIG}")
    return Found(tuple(weights), folder)


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise WeightsError(f"{index} has no weight_map, which names the shards")
    # A shard lies beside its index, wherever the index claims it to be.
    shards = [index.parent / Path(str(name)).name for name in sorted(set(names.values()))]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise WeightsError(f"{index} names shards that are not there: {', '.join(missing)}")
    return shards


def _find_on_hub(name: str) -> Found:
    from huggingface_hub import snapshot_download

    small = [CONFIG, VOCABULARY, _TOKENIZER]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*small, "*" + SAFETENSORS, INDEX]))
        if not (folder / MODEL).is_file() and not (folder / INDEX).is_file():
            folder = Path(snapshot_download(name, allow_patterns=[*small, PICKLE]))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise WeightsError(
            f"{name} is not a file or folder here, and not to be had from the hub: {reason}. "
            f"{_OFFLINE}"
        ) from None
    return _find_in(folder)
