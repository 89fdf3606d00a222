"""What a training run is to do: one frozen record, with the names of the reference's YAML files.

Defaults are the reference's own (BLIP's configs/*.yaml and the paper, section 4); those that differ
between tasks stand in `_BY_TASK`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from blip_fast.data.files import replacing
from blip_fast.train.recipe_checks import check_ranges, check_together
from blip_fast.train.recipe_values import convert, nearest, read_overrides, read_yaml

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
    vit: Literal["base", "large", "scenes"] = "base"
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
        """Raise a ValueError where a setting is out of range or contradicts another."""
        check_ranges(self)
        check_together(self)

    @property
    def drop_path(self) -> float:
        """The rate that holds: the reference's own where none is given."""
        if self.drop_path_rate is not None:
            return self.drop_path_rate
        return 0.1 if self.vit == "large" or self.task in ("vqa", "nlvr") else 0.0

    @property
    def manifests(self) -> tuple[str, ...]:
        """The fixed part of every epoch: `train_file`, or the annotation files that the
        reference's code takes from `ann_root`."""
        if self.train_file or not self.ann_root:
            return self.train_file
        names = [f"{name}.json" for name in self.train_files]
        if self.task != "vqa":
            flickr = self.task == "retrieval" and self.dataset == "flickr"
            coco = "flickr30k_train.json" if flickr else "coco_karpathy_train.json"
            names = ["nlvr_train.json" if self.task == "nlvr" else coco]
        return tuple(str(Path(self.ann_root) / name) for name in names)

    def write(self, path: Path) -> None:
        """Write every setting as YAML."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        with replacing(path) as temporary:
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")


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

# Another spelling of a key, and keys of the reference that only its evaluation reads.
_ALIASES = {"batch_size_train": "batch_size"}
EVALUATION_KEYS = (
    "batch_size_test", "k_test", "num_beams", "min_length", "coco_gt_root", "inference",
)  # fmt: skip
# Keys that the reference's recipe of one task has, and no other's.
_TELLS: dict[str, Task] = {
    "laion_path": "pretrain",
    "num_beams": "caption",
    "prompt": "caption",
    "negative_all_rank": "retrieval",
    "train_files": "vqa",
    "vqa_root": "vqa",
    "vg_root": "vqa",
    "inference": "vqa",
}
# Settings that only some tasks look at.
_CONTRASTIVE: tuple[Task, ...] = ("pretrain", "retrieval")
_USED_BY: dict[str, tuple[Task, ...]] = {
    **dict.fromkeys(("queue_size", "alpha", "alpha_epochs", "momentum"), _CONTRASTIVE),
    "negative_all_rank": ("retrieval",),
    "label_smoothing": ("pretrain", "caption", "vqa"),
    "prompt": ("caption",),
    "max_length": ("pretrain", "caption", "retrieval", "vqa"),
    "vqa_root": ("vqa",),
    "vg_root": ("vqa",),
    "train_files": ("vqa",),
}


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Read a recipe: a YAML file, or the name of one in the package.

    The reference's own files are recipes too. In its caption recipe `max_length`, beside
    `min_length` and `num_beams`, is the length of what is generated; ours is that of training.

    Args:
        overrides: `key=value` words, which go before the file: `init_lr=1e-5`,
            `train_file=[a.json,b.json]`, `vision.width=384`.

    Returns:
        the recipe, and the keys that were set and that training does not read.

    Raises:
        ValueError: naming the key, what it is, and what it may be.
        OSError: where the file cannot be read.
    """
    path = find_recipe(source)
    file, given = _spelled(read_yaml(path)), _spelled(read_overrides(overrides))
    task = given.get("task") or file.get("task") or _task_of(file, path)
    unread = []
    if "max_length" in file and ("num_beams" in file or "min_length" in file):
        del file["max_length"]
        unread.append("max_length")
    for section in ("vision", "text"):
        if isinstance(file.get(section), dict) and isinstance(given.get(section), dict):
            given[section] = {**file[section], **given[section]}
    recipe, others = build_recipe({**file, **given, "task": task})
    return recipe, [*unread, *others]


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe; one on this machine goes before one of its name in the package.

    Raises:
        ValueError: where there is none, naming those of the package.
    """
    path, packaged = Path(source), PACKAGED / f"{source}.yaml"
    if path.is_file():
        return path
    if packaged.is_file():
        return packaged
    names = ", ".join(sorted(p.stem for p in PACKAGED.glob("*.yaml")))
    raise ValueError(f"there is no recipe {source}; give a YAML file, or one of {names}")


def build_recipe(values: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """A recipe out of plain values, `task` among them, and the keys that training does not read."""
    given = _spelled(values)
    task = given.pop("task", None)
    if task not in get_args(Task):
        raise ValueError(f"task is {task!r}; it must be one of {', '.join(get_args(Task))}")
    task = cast(Task, task)
    unread = [key for key in EVALUATION_KEYS if key in given]
    hints = typing.get_type_hints(Recipe)
    settings = {
        key: convert(key, value, hints[key]) for key, value in given.items() if key in hints
    }
    recipe = Recipe(**{**_BY_TASK[task], **settings, "task": task})
    usual = {f.name: f.default for f in fields(Recipe)} | _BY_TASK[task]
    for key, tasks in _USED_BY.items():
        if task not in tasks and getattr(recipe, key) != usual[key]:
            unread.append(key)
    return recipe, unread


def _spelled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one file or command line by their own names: each known, and once."""
    known = [*(f.name for f in fields(Recipe)), *_ALIASES, *EVALUATION_KEYS]
    spelled: dict[str, Any] = {}
    for key, value in values.items():
        section, _, size = key.partition(".")
        if size and section in ("vision", "text"):
            sizes = spelled.setdefault(section, {})
            if not isinstance(sizes, dict):
                raise ValueError(f"{section} is {sizes!r}, and {key} is given too; keep one")
            sizes[size] = value
            continue
        if key not in known:
            raise ValueError(f"there is no setting {key!r}; {nearest(key, known)}")
        name = _ALIASES.get(key, key)
        if name in spelled:
            raise ValueError(f"{name} is given twice, as {key} too; give one of them")
        spelled[name] = value
    return spelled


def _task_of(file: Mapping[str, Any], path: Path) -> Task:
    """The task that the keys of a file tell, or else its name: NLVR2's has no key of its own."""
    told = {task for key, task in _TELLS.items() if key in file}
    told = told or {task for task in get_args(Task) if path.stem.startswith(task)}
    if len(told) != 1:
        keys = f"its keys tell {' and '.join(sorted(told))}" if told else "its keys do not tell"
        raise ValueError(f"{path.name} names no task, and {keys}; add task=caption, or another")
    return told.pop()
