"""What a recipe may not say: values out of range, settings that contradict, files that are not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import le
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from blip_fast.config import TextConfig, VisionConfig, check_image_size, preset
from blip_fast.train.recipe_values import choices_of, nearest

if TYPE_CHECKING:
    from blip_fast.train.recipe import Recipe

LOGGERS = ("tensorboard", "wandb")

_AT_LEAST = {
    "seed": 0, "image_size": 1, "vit_ckpt_layer": 0, "laion_files_per_epoch": 1, "max_words": 1,
    "max_length": 3, "workers": 1, "window": 1, "together": 1, "batch_size": 1,
    "accumulate": 1, "max_epoch": 1, "max_steps": 1, "min_lr": 0, "warmup_lr": 0,
    "warmup_steps": 0, "weight_decay": 0,
    "queue_size": 0, "alpha_epochs": 0, "checkpoint_steps": 1, "keep_checkpoints": 1,
    "log_steps": 1,
}  # fmt: skip
_POSITIVE = ("init_lr", "clip_grad_norm")
_FROM_0_TO_1 = ("alpha", "momentum")
_BELOW_1 = ("text_dropout", "drop_path_rate", "label_smoothing")
_ABOVE_0 = ("vision_layer_decay", "min_scale", "lr_decay_rate")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")
_VOCABULARIES = ("vocab.txt", "tokenizer.json")


def check_ranges(recipe: Recipe) -> None:
    """Raise a ValueError where a value by itself makes no sense."""
    for key, hint in get_type_hints(type(recipe)).items():
        value, choices = getattr(recipe, key), choices_of(hint)
        if choices and value not in choices:
            raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is {value}; it must be finite")
    for key, least in _AT_LEAST.items():
        _require(recipe, key, partial(le, least), f"at least {least}")
    for key in _POSITIVE:
        _require(recipe, key, lambda x: x > 0, "more than 0")
    for key in _FROM_0_TO_1:
        _require(recipe, key, lambda x: 0 <= x <= 1, "from 0 to 1")
    for key in _BELOW_1:
        _require(recipe, key, lambda x: 0 <= x < 1, "at least 0 and less than 1")
    for key in _ABOVE_0:
        _require(recipe, key, lambda x: 0 < x <= 1, "more than 0 and at most 1")
    for logger in recipe.loggers:
        if logger not in LOGGERS:
            raise ValueError(f"loggers has {logger!r}; there are {' and '.join(LOGGERS)}")


def check_together(recipe: Recipe) -> None:
    """Raise a ValueError where two settings contradict each other."""
    _check_sizes(recipe)
    _check_rates(recipe)
    beside = [k for k in ("vision_init", "text_init", "vision", "text") if getattr(recipe, k)]
    if recipe.pretrained and beside:
        raise ValueError(
            f"pretrained is {recipe.pretrained!r}, which has all weights and sizes; leave out "
            f"{' and '.join(beside)}"
        )
    if recipe.freeze_vision and recipe.vision_layer_decay != 1:
        raise ValueError(
            f"freeze_vision is true and vision_layer_decay {recipe.vision_layer_decay}; what is "
            "frozen has no learning rate: set freeze_vision=false or vision_layer_decay=1"
        )
    if recipe.image_root and (recipe.vqa_root or recipe.vg_root):
        raise ValueError(
            f"image_root is {recipe.image_root!r}, and vqa_root or vg_root is given too; give "
            "either the one or the others"
        )


def check_files(recipe: Recipe, has_sources: bool = False) -> None:
    """Raise a ValueError where a file that a run needs is not named, or not there.

    Before any model is built. Patterns and addresses are left to those who open them.
    `has_sources`: data are given apart from the recipe.
    """
    if not has_sources and not recipe.manifests and not recipe.laion_path:
        raise ValueError(
            "the recipe names no data; set train_file to manifests, tar shards, parquet files or "
            "folders"
        )
    for path in recipe.manifests:
        _check_there("train_file", path)
    for key in ("laion_path", "image_root", "vqa_root", "vg_root", "vocabulary"):
        if value := getattr(recipe, key):
            _check_there(key, value)
    for key in ("vision_init", "text_init"):
        if (value := getattr(recipe, key)) and not Path(value).exists():
            raise ValueError(f"{key} is {value}, which is no file or folder of this machine")
    if recipe.pretrained:
        _check_pretrained(recipe.pretrained)
    if not recipe.vocabulary and not _carries_vocabulary(recipe.pretrained or recipe.text_init):
        start = recipe.pretrained or recipe.text_init or "the start from nothing"
        raise ValueError(f"{start} carries no vocabulary; set vocabulary to a BERT vocab.txt")


def _check_sizes(recipe: Recipe) -> None:
    """The sizes that a recipe names; a pretrained model has its own."""
    sizes = preset(recipe.vit)
    for section, kind in (("vision", VisionConfig), ("text", TextConfig)):
        known = [name for name in get_type_hints(kind) if name != "image_size"]
        for key in getattr(recipe, section):
            if key == "image_size":
                raise ValueError("vision.image_size is given; image_size is a key of its own")
            if key not in known:
                raise ValueError(f"{section} has no size {key!r}; {nearest(key, known)}")
    text = replace(sizes.text, **recipe.text)
    # Without the image size, which is checked apart so that its message stands alone.
    patch = recipe.vision.get("patch_size", sizes.vision.patch_size)
    if not recipe.pretrained:
        check_image_size(recipe.image_size, patch)
    vision = replace(sizes.vision, **{**recipe.vision, "image_size": patch})
    if recipe.vit_ckpt_layer > vision.depth:
        raise ValueError(
            f"vit_ckpt_layer is {recipe.vit_ckpt_layer}, but the vision transformer of vit="
            f"{recipe.vit} has {vision.depth} layers; set vit_ckpt_layer={vision.depth} for all"
        )
    if recipe.vit_grad_ckpt and not recipe.vit_ckpt_layer:
        raise ValueError(
            "vit_grad_ckpt is true, but vit_ckpt_layer 0 recomputes no layer; set vit_ckpt_layer "
            f"to 1 ... {vision.depth}, or vit_grad_ckpt=false"
        )
    if recipe.max_length > text.max_positions and recipe.task != "nlvr":
        raise ValueError(
            f"max_length is {recipe.max_length}, but the text transformer has "
            f"{text.max_positions} positions; set max_length to at most that"
        )


def _check_rates(recipe: Recipe) -> None:
    for key in ("min_lr", "warmup_lr"):
        unused = key == "warmup_lr" and not recipe.warmup_steps
        if getattr(recipe, key) > recipe.init_lr and not unused:
            raise ValueError(
                f"{key} is {getattr(recipe, key)}, more than init_lr {recipe.init_lr}; "
                f"set {key} to at most that"
            )
    limit = recipe.max_steps
    if limit is not None and recipe.schedule != "cosine" and recipe.warmup_steps > limit:
        raise ValueError(
            f"warmup_steps is {recipe.warmup_steps}, more than max_steps {limit}, so the learning "
            f"rate would never reach init_lr; set warmup_steps to at most {limit}"
        )


def _require(recipe: Recipe, key: str, holds: Callable[[Any], bool], what: str) -> None:
    value = getattr(recipe, key)
    if value is not None and not holds(value):
        hint = get_type_hints(type(recipe))[key]
        raise ValueError(
            f"{key} is {value}; it must be {what}"
            + (", or none" if type(None) in get_args(hint) else "")
        )


def _check_there(key: str, value: str) -> None:
    is_pattern = any(mark in value for mark in ("://", "::", "*", "?", "[", "{"))
    if not is_pattern and not Path(value).exists():
        raise ValueError(f"{key} names {value}, which does not exist; set {key} to where it is")


def _check_pretrained(value: str) -> None:
    if "://" in value:
        raise ValueError(
            f"pretrained is the address {value}; download it, and set pretrained to the file"
        )
    is_hub_id = _HUB_ID.fullmatch(value) and not value.endswith(_WEIGHTS)
    if value != "scenes" and not is_hub_id and not Path(value).exists():
        raise ValueError(
            f"pretrained is {value}, which is no file or folder here, and no hub id org/name"
        )


def _carries_vocabulary(source: str) -> bool:
    """Whether a starting point brings a vocabulary; of what lies elsewhere nobody knows yet."""
    if not source:
        return False
    path = Path(source)
    if not path.exists():
        return True
    folder = path if path.is_dir() else path.parent
    return any((folder / name).is_file() for name in _VOCABULARIES)
