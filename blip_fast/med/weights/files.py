"""Tensors out of files that nobody vouches for: nothing runs, and every fault is a sentence."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from blip_fast.med.weights.errors import WeightsError, listed

PICKLES = (".pth", ".pt", ".bin")
SAFETENSORS = ".safetensors"

_CHUNK = 1 << 24  # bytes; hashing runs at the disk's speed from here on


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's files: one, or several shards.

    Args:
        files: .safetensors, or pickles (.pth, .pt, .bin) which hold a state dict, bare or under
            "model" as Salesforce and LAVIS write it. Of pickles only tensors and plain
            containers are read (`weights_only=True`); anything else is refused, not run.

    Raises:
        WeightsError: where a file is truncated, no such file at all, or holds more than tensors;
            where two shards hold the same tensor.
    """
    state: dict[str, Tensor] = {}
    for file in files:
        part = _read_safetensors(file) if file.suffix == SAFETENSORS else _read_pickle(file)
        if twice := sorted(set(part) & set(state)):
            raise WeightsError(f"{file} repeats tensors of an earlier shard:{listed(twice)}")
        state |= part
    return state


def sha256_of(files: Sequence[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, for weights that come from no file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _refuse_what_is_no_weights_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    _refuse_what_is_no_weights_file(path)
    try:
        # Mapping the file saves a copy; it needs the zip format that torch writes since 1.6.
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    # The unpickler reads whatever bytes it is given and can fail in any way at all.
    except Exception as error:
        raise WeightsError(_why_no_pickle(path, error)) from None
    return _state_dict(path, found)


def _why_no_pickle(path: Path, error: Exception) -> str:
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"{path} holds {match[1]}, which is not a tensor; nothing of it was run. If you trust "
            'the file, write it anew with only its tensors: torch.save({"model": state_dict})'
        )
    detail = ""
    # torch's own advice on a refused pickle is to run it; that is not passed on.
    if not isinstance(error, pickle.UnpicklingError):
        detail = f" ({type(error).__name__}: {str(error).strip()[:200]})"
    return f"{path} is truncated, or was not written by torch.save{detail}"


def _state_dict(path: Path, found: Any) -> dict[str, Tensor]:
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a state dict")
    others = [
        f"{name}: {type(value).__name__}"
        for name, value in found.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others or not found:
        raise WeightsError(
            f"{path} holds no state dict, neither bare nor under 'model'; among its "
            f"{len(found)} entries these are not tensors:{listed(others)}"
        )
    return {name: value.detach() for name, value in found.items()}


def _refuse_what_is_no_weights_file(path: Path) -> None:
    """Name the ways in which a download goes wrong."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from None
    if not start:
        raise WeightsError(f"{path} is empty; the download did not finish")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page, not weights; the download went wrong")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer, not weights; run `git lfs pull`")
