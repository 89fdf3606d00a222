"""From a name to a model: the checkpoint, the dtype and the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blip_fast.config import Compat, Kind, check_image_size
from blip_fast.images import ON_DEVICE, Decoder, ImageOptions
from blip_fast.med.quantize import Quantize, quantize_int8
from blip_fast.med.weights import Checkpoint, build, from_live_transformers, read_checkpoint
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer


def load(
    source: str | Path,
    *,
    image_size: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    compat: Compat | None = None,
    kind: Kind | None = None,
    vocabulary: str | Path | None = None,
    quantize: Quantize | None = None,
    decoder: Decoder = "auto",
    max_pixels: int | None = None,
) -> Blip:
    """Load a BLIP checkpoint.

    Args:
        source: a hub id, a folder in transformers' layout or in ours, a Salesforce or LAVIS
            `.pth`, a `.safetensors`, or "scenes", the small model in the package.
        image_size: input size in pixels, any multiple of the patch size; the checkpoint's own
            where none is given. Position vectors are interpolated.
        dtype: of weights and computation, "float32", "bfloat16" or "float16"; see `default_dtype`.
        device: "cpu", "cuda", "cuda:1"; a GPU where there is one.
        compat: "transformers" to repeat what transformers does differently from the paper's
            training: matched texts and questions begin with [CLS] instead of [ENC].
        kind: which part of a pretraining checkpoint to load, such as "caption" or "retrieval".
        vocabulary: a BERT `vocab.txt`, for checkpoints that carry none, as `.pth` files.
        quantize: "int8" to hold the matrices of vision and text layers as int8, on a CPU: half
            the memory of bfloat16 and up to twice its speed, for features within half a per cent.
        decoder: of image files, as of `ImageOptions`; "dali" and "nvimgcodec" work on `device`.
        max_pixels: of an image file, as of `ImageOptions`, whose default it has.

    Raises:
        ValueError: where the checkpoint is damaged, incomplete or of another shape; every tensor
            concerned is listed.
    """
    path = None if vocabulary is None else Path(vocabulary)
    checkpoint = read_checkpoint(source, kind=kind, vocabulary=path)
    blip = _assemble(checkpoint, image_size, dtype, device, compat, decoder, max_pixels)
    if quantize is None:
        return blip
    if quantize != "int8":
        raise ValueError(f"quantize is {quantize!r}; it must be 'int8' or None")
    return replace(blip, med=quantize_int8(blip.med))


def from_transformers(
    model: Any,
    *,
    vocabulary: str | Path,
    image_size: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    compat: Compat | None = None,
) -> Blip:
    """Take over a live transformers model, sharing the memory of what need not be rearranged.

    Args:
        model: a `BlipForConditionalGeneration`, `BlipForImageTextRetrieval` or
            `BlipForQuestionAnswering`.
        vocabulary: its `vocab.txt`; a live model carries none.
        dtype, device: the model's own where none is given.

    Raises:
        ValueError: as `load`.
    """
    checkpoint = from_live_transformers(model, Tokenizer.read(Path(vocabulary)))
    parameter = next(model.parameters())
    return _assemble(
        checkpoint, image_size, dtype or parameter.dtype, device or parameter.device, compat
    )


def default_device() -> torch.device:
    """The first GPU where torch has one to use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it: AMX, AVX512-BF16, or a GPU from Ampere on.

    Else float16 on a GPU and float32 on a CPU.
    """
    if device.type == "cuda":
        ampere = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if ampere else torch.float16
    return torch.bfloat16 if cpu_multiplies_bf16() else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _assemble(
    checkpoint: Checkpoint,
    image_size: int | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    compat: Compat | None,
    decoder: Decoder = "auto",
    max_pixels: int | None = None,
) -> Blip:
    config = checkpoint.config
    if compat is not None:
        config = replace(config, compat=compat)
        checkpoint = replace(checkpoint, config=config)
    if checkpoint.tokenizer is None:
        raise ValueError(
            f"{checkpoint.source} carries no vocabulary; give vocabulary=, the path of "
            "bert-base-uncased's vocab.txt"
        )
    checkpoint.tokenizer.check(config.text)
    size = config.vision.image_size if image_size is None else image_size
    check_image_size(size, config.vision.patch_size)
    device = default_device() if device is None else _as_device(device)
    dtype = default_dtype(device) if dtype is None else _as_dtype(dtype)
    decoding = str(device) if decoder in ON_DEVICE else "cpu"
    limit = ImageOptions.max_pixels if max_pixels is None else max_pixels
    image_options = ImageOptions(size=size, decoder=decoder, device=decoding, max_pixels=limit)
    return Blip(
        med=build(checkpoint, dtype=dtype, device=device),
        tokenizer=checkpoint.tokenizer,
        source=checkpoint.source,
        sha256=checkpoint.sha256,
        trained=checkpoint.trained,
        image_options=image_options,
    )


_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,  # for comparisons
}


def _as_device(device: torch.device | str) -> torch.device:
    """Raises a ValueError where there is no such device here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device {str(device)!r} cannot be used here: {reason}; leave it out for the default"
        ) from error
    return found


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Raises a ValueError where it is none that the kernels compute in."""
    for name, known in _DTYPES.items():
        if dtype in (name, known):
            return known
    raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}")
