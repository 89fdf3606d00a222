"""What a training run is to do: one frozen record, with the names of the reference's YAML files.

Defaults are the reference's own (BLIP's configs/*.yaml and the paper, section 4); those that differ
between tasks stand in `_BY_TASK`.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import yaml

from blip_fast.data.files import replacing

Task = Literal["pretrain", "caption", "retrieval", "vqa", "nlvr"]
Schedule = Literal["step", "cosine", "cosine_steps"]

PACKAGED = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """Settings of a run. Paths are of this machine or URLs; sizes of batches are per process.

    Attributes:
        task: what is learned.
        seed: of weights, queue, order, augmentation and dropout.
        pretrained: a BLIP checkpoint to start from: hub id, folder or file.
        vit: sizes of the model that starts from nothing: "base", "large" or "scenes".
        vision, text: sizes that differ from those, by `VisionConfig`'s and `TextConfig`'s names.
        vision_init: a ViT to start the vision transformer from:
            timm's file or transformers' folder.
        text_init: a BERT to start the text transformers from: transformers' folder.
        vocabulary: a BERT vocab.txt, where the starting point carries none.
        image_size: in pixels.
        train_file: manifests, tar shards, parquet files or folders: the fixed part of every epoch.
        image_root: what paths in manifests begin below; the manifest's own folder where empty.
        ann_root: retrieval and NLVR2: the folder of the reference's annotation files.
        vqa_root, vg_root: VQA: what paths of rows of each data set begin below.
        dataset: retrieval: whose annotation file of `ann_root` is meant.
        train_files: VQA: names of annotation files in `ann_root`.
        laion_path: a folder or pattern of web sources that take turns.
        laion_files_per_epoch: how many of them join each epoch.
        window: shards that are shuffled together.
        together: samples that stay neighbours in a batch, as hard negatives of each other.
        workers: threads that read pictures.
        augment: False leaves pictures as they are but for their size.
        min_scale: least share of a picture's area that a random crop keeps.
        max_words: of a text; the rest is cut.
        max_length: of a text, in tokens; the rest is cut.
        prompt: caption: what every caption begins with.
        vit_grad_ckpt, vit_ckpt_layer: whether to recompute vision blocks in the backward pass, and
            how many, the last ones.
        text_grad_ckpt: recompute the text layers.
        freeze_vision: leave the vision transformer as it is.
        vision_layer_decay: factor of the learning rate from each vision block to the one below.
        text_dropout: of hidden states. Attention probabilities, never stored, have none.
        drop_path_rate: of the last vision block; None is 0.1 for ViT-L, VQA and NLVR2, else 0.
        dtype: of the computation; weights, gradients' sums and the optimizer stay in float32.
        batch_size, accumulate: pairs of one process in one pass, and passes of one step.
        max_epoch, max_steps: where training ends, whichever comes first.
        init_lr, min_lr, warmup_lr, warmup_steps, lr_decay_rate, schedule: see `train.optim`.
        weight_decay: of AdamW; on all parameters, as in the reference.
        decay_norm_and_bias: False leaves out vectors, as LAVIS does.
        clip_grad_norm: largest norm of all gradients; None clips nothing.
        queue_size: entries of the contrastive queues; 0 is no queue.
        momentum: of the momentum encoders.
        alpha, alpha_epochs: weight of the soft targets, and epochs over which it grows from 0.
        negative_all_rank: retrieval: draw ITM's negatives from the batches of all processes.
        label_smoothing: of the LM loss.
        checkpoint_steps: steps between checkpoints; one is also written at each epoch's end.
        keep_checkpoints: how many of the newest stay.
        log_steps: steps between lines of the log.
        loggers: "tensorboard", "wandb".
    """

    task: Task
    seed: int = 42
    pretrained: str = ""
    vit: str = "base"
    vision: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    vision_init: str = ""
    text_init: str = ""
    vocabulary: str = ""
    image_size: int = 384
    train_file: tuple[str, ...] = ()
    image_root: str = ""
    ann_root: str = ""
    vqa_root: str = ""
    vg_root: str = ""
    dataset: Literal["coco", "flickr"] = "coco"
    train_files: tuple[str, ...] = ()
    laion_path: str = ""
    laion_files_per_epoch: int = 1
    window: int = 16
    together: int = 1
    workers: int = 4
    augment: bool = True
    min_scale: float = 0.5
    max_words: int = 30
    max_length: int = 30
    prompt: str = "a picture of "
    vit_grad_ckpt: bool = False
    vit_ckpt_layer: int = 0
    text_grad_ckpt: bool = False
    freeze_vision: bool = False
    vision_layer_decay: float = 1.0
    text_dropout: float = 0.1
    drop_path_rate: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 32
    accumulate: int = 1
    max_epoch: int = 5
    max_steps: int | None = None
    init_lr: float = 1e-5
    min_lr: float = 0.0
    warmup_lr: float = 1e-6
    warmup_steps: int = 0
    lr_decay_rate: float = 0.9
    schedule: Schedule = "cosine"
    weight_decay: float = 0.05
    decay_norm_and_bias: bool = True
    clip_grad_norm: float | None = None
    queue_size: int = 57_600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_epochs: float = 1.0
    negative_all_rank: bool = True
    label_smoothing: float = 0.1
    checkpoint_steps: int = 1000
    keep_checkpoints: int = 3
    log_steps: int = 50
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, (low, high) in _RANGES.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{key} is {value}; it must be from {low} to {high}")
        if unknown := sorted(set(self.loggers) - {"tensorboard", "wandb"}):
            raise ValueError(f"loggers has {unknown[0]!r}; there are tensorboard and wandb")
        if self.vit_ckpt_layer and not self.vit_grad_ckpt:
            raise ValueError(
                f"vit_ckpt_layer is {self.vit_ckpt_layer} and vit_grad_ckpt false; set the latter "
                "to recompute vision blocks, or the former to 0"
            )
        if self.freeze_vision and (self.vit_grad_ckpt or self.vision_layer_decay != 1):
            raise ValueError(
                "freeze_vision is set, so nothing of the vision transformer is trained; leave out "
                "vit_grad_ckpt and vision_layer_decay"
            )
        if self.pretrained and (self.vision_init or self.text_init or self.vision or self.text):
            raise ValueError(
                f"pretrained is {self.pretrained!r}, which has all weights and sizes; leave out "
                "vision_init, text_init, vision and text"
            )

    @property
    def drop_path(self) -> float:
        """The rate that holds: the reference's own where none is given."""
        if self.drop_path_rate is not None:
            return self.drop_path_rate
        return 0.1 if self.vit == "large" or self.task in ("vqa", "nlvr") else 0.0

    def write(self, path: Path) -> None:
        """Write every setting as YAML."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 4096),
    "batch_size": (1, 1e6),
    "accumulate": (1, 1e6),
    "max_epoch": (1, 1e9),
    "max_steps": (1, 1e12),
    "init_lr": (0, 1),
    "min_lr": (0, 1),
    "warmup_lr": (0, 1),
    "warmup_steps": (0, 1e12),
    "lr_decay_rate": (0, 1),
    "weight_decay": (0, 1),
    "clip_grad_norm": (1e-9, 1e9),
    "queue_size": (0, 1e9),
    "momentum": (0, 1),
    "alpha": (0, 1),
    "alpha_epochs": (0, 1e9),
    "label_smoothing": (0, 1),
    "text_dropout": (0, 0.99),
    "drop_path_rate": (0, 0.99),
    "vision_layer_decay": (1e-3, 1),
    "min_scale": (1e-3, 1),
    "max_words": (1, 1e6),
    "max_length": (2, 512),
    "laion_files_per_epoch": (1, 1e6),
    "window": (1, 1e6),
    "together": (1, 1e6),
    "workers": (1, 256),
    "vit_ckpt_layer": (0, 1000),
    "checkpoint_steps": (1, 1e12),
    "keep_checkpoints": (1, 1e6),
    "log_steps": (1, 1e9),
}

_BY_TASK: dict[Task, dict[str, Any]] = {
    "pretrain": {
        "image_size": 224,
        "batch_size": 75,
        "min_scale": 0.2,
        "max_length": 30,
        "alpha_epochs": 2.0,
        "schedule": "step",
        "init_lr": 3e-4,
        "min_lr": 1e-6,
        "warmup_steps": 3000,
        "max_epoch": 20,
    },
    "caption": {"max_length": 40},
    "retrieval": {"max_length": 35, "max_epoch": 6},
    "vqa": {
        "image_size": 480,
        "batch_size": 16,
        "max_length": 35,
        "max_words": 50,
        "init_lr": 2e-5,
        "max_epoch": 10,
    },
    "nlvr": {"batch_size": 16, "max_words": 40, "init_lr": 3e-5, "max_epoch": 15},
}

# Other spellings of a key, and keys of the reference that only its evaluation reads.
_ALIASES = {"batch_size_train": "batch_size", "lr": "init_lr"}
EVALUATION_KEYS = frozenset(
    "batch_size_test k_test num_beams min_length coco_gt_root inference optimizer "
    "warmup sched".split()
)


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Read a recipe: a YAML file, or the name of one in the package.

    Args:
        overrides: `key=value`, the value as YAML; `vision.width=384` sets one size.

    Returns:
        the recipe, and the keys of the file that training does not read.

    Raises:
        ValueError: naming the key, what it is, and what it may be.
        OSError: where the file cannot be read.
    """
    path = find_recipe(source)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no settings; a recipe is `key: value` lines")
    for override in overrides:
        _override(values, override)
    return build_recipe(values)


def find_recipe(source: str | Path) -> Path:
    path, packaged = Path(source), PACKAGED / f"{source}.yaml"
    if path.is_file():
        return path
    if packaged.is_file():
        return packaged
    names = ", ".join(sorted(p.stem for p in PACKAGED.glob("*.yaml")))
    raise ValueError(f"there is no recipe {source}; give a YAML file, or one of {names}")


def build_recipe(values: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """A recipe out of plain values, and the keys that training does not read."""
    given = {_ALIASES.get(key, key): value for key, value in values.items()}
    if len(given) < len(values):
        raise ValueError("batch_size and batch_size_train are both given; give one of them")
    unread = sorted(given.keys() & EVALUATION_KEYS)
    given = {key: value for key, value in given.items() if key not in EVALUATION_KEYS}
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(given.keys() - known):
        near = difflib.get_close_matches(unknown[0], known, n=3)
        raise ValueError(
            f"there is no setting {unknown[0]!r}; "
            + (f"is it {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}")
        )
    task = given.get("task", _task_of(given))
    if task not in get_args(Task):
        raise ValueError(f"task is {task!r}; it must be one of {', '.join(get_args(Task))}")
    types_ = typing.get_type_hints(Recipe)
    checked = {key: _checked(key, value, types_[key]) for key, value in given.items()}
    defaults = _BY_TASK[cast(Task, task)]
    return Recipe(**{**defaults, **checked, "task": task}), unread


def _task_of(given: Mapping[str, Any]) -> str | None:
    """The task of one of the reference's own files, told by its keys."""
    if "vqa_root" in given or "vg_root" in given:
        return "vqa"
    if "prompt" in given:
        return "caption"
    if "queue_size" in given:
        return "pretrain" if "train_file" in given else "retrieval"
    return None


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is no setting; write key=value")
    *parents, last = key.split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{key}: {parent} is a single value and has no {last}")
    inner[last] = yaml.safe_load(text)


def _checked(key: str, value: Any, kind: Any) -> Any:
    """The value in the type of its field."""
    options = get_args(kind) if get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
            return tuple(items)
    elif get_origin(kind) is not None:  # a mapping
        if isinstance(value, Mapping):
            return dict(value)
    elif kind is float:
        return _number(key, value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{key} is {value!r}; it must be {_WORDS.get(kind, 'a list of texts')}")


_WORDS = {int: "a whole number", str: "a text", bool: "true or false"}


def _number(key: str, value: Any) -> float:
    """YAML 1.1 takes 1e-5, without a point, for a text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {value!r}; it must be a number") from None
