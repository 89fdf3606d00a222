"""Recipes: the reference's files as they are, what is refused and how, and what is written."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import tiny_vocabulary

from blip_fast.train.recipe import PACKAGED, Recipe, build_recipe, find_recipe, read_recipe
from blip_fast.train.recipe_checks import check_files

# The settings of the reference's configs/*.yaml.
_COMMON = {
    "vit": "base", "vit_grad_ckpt": False, "vit_ckpt_layer": 0, "image_size": 384,
    "weight_decay": 0.05, "min_lr": 0, "ann_root": "annotation",
}  # fmt: skip
_RETRIEVAL = {
    **_COMMON, "image_root": "/data/coco", "pretrained": "https://x/model_base.pth",
    "batch_size_train": 32, "batch_size_test": 64, "vit_grad_ckpt": True, "vit_ckpt_layer": 4,
    "init_lr": "1e-5", "queue_size": 57600, "alpha": 0.4, "max_epoch": 6,
}  # fmt: skip
REFERENCE: dict[str, dict[str, Any]] = {
    "pretrain": {
        "train_file": ["a/coco_karpathy_train.json", "a/vg_caption.json"], "laion_path": "",
        "vit": "base", "vit_grad_ckpt": False, "vit_ckpt_layer": 0, "image_size": 224,
        "batch_size": 75, "queue_size": 57600, "alpha": 0.4, "weight_decay": 0.05,
        "init_lr": "3e-4", "min_lr": "1e-6", "warmup_lr": "1e-6", "lr_decay_rate": 0.9,
        "max_epoch": 20, "warmup_steps": 3000,
    },
    "caption_coco": {
        **_COMMON, "image_root": "/data/coco", "coco_gt_root": "annotation/coco_gt",
        "pretrained": "https://x/model_base_capfilt_large.pth", "batch_size": 32,
        "init_lr": "1e-5", "max_length": 20, "min_length": 5, "num_beams": 3,
        "prompt": "a picture of ", "max_epoch": 5,
    },
    "retrieval_coco": {
        **_RETRIEVAL, "dataset": "coco", "k_test": 256, "negative_all_rank": True,
    },
    "retrieval_flickr": {
        **_RETRIEVAL, "dataset": "flickr", "k_test": 128, "negative_all_rank": False,
    },
    "vqa": {
        **_COMMON, "vqa_root": "/data/vqa", "vg_root": "/data/vg",
        "train_files": ["vqa_train", "vqa_val", "vg_qa"], "pretrained": "https://x/model_vqa.pth",
        "batch_size_train": 16, "batch_size_test": 32, "init_lr": "2e-5", "image_size": 480,
        "k_test": 128, "inference": "rank", "max_epoch": 10,
    },
    "nlvr": {
        **_COMMON, "image_root": "/data/NLVR2", "pretrained": "https://x/model_base_nlvr.pth",
        "batch_size_train": 16, "batch_size_test": 64, "max_epoch": 15, "init_lr": "3e-5",
    },
}  # fmt: skip
TASKS = {"pretrain": "pretrain", "caption_coco": "caption", "vqa": "vqa", "nlvr": "nlvr"}
UNREAD = {
    "pretrain": set(),
    "caption_coco": {"coco_gt_root", "max_length", "min_length", "num_beams"},
    "retrieval_coco": {"batch_size_test", "k_test"},
    "retrieval_flickr": {"batch_size_test", "k_test"},
    "vqa": {"batch_size_test", "k_test", "inference"},
    "nlvr": {"batch_size_test"},
}
KEYS = """
    task seed pretrained vit vision text vision_init text_init vocabulary image_size train_file
    image_root ann_root vqa_root vg_root dataset train_files laion_path laion_files_per_epoch
    window together workers augment min_scale max_words max_length prompt vit_grad_ckpt
    vit_ckpt_layer
    text_grad_ckpt freeze_vision vision_layer_decay text_dropout drop_path_rate dtype batch_size
    accumulate max_epoch max_steps init_lr min_lr warmup_lr warmup_steps lr_decay_rate schedule
    weight_decay decay_norm_and_bias clip_grad_norm queue_size momentum alpha alpha_epochs
    negative_all_rank label_smoothing checkpoint_steps keep_checkpoints log_steps loggers
""".split()


def write(path: Path, values: dict[str, Any]) -> Path:
    """As YAML, with rates as the reference spells them: 3e-4, which YAML takes for a text."""
    path.write_text("".join(f"{key}: {_spell(value)}\n" for key, value in values.items()))
    return path


def _spell(value: Any) -> str:
    is_rate = isinstance(value, str) and value[:1].isdigit()
    return value if is_rate else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0]


def made(task: str, *overrides: str) -> Recipe:
    recipe, unread = read_recipe(task, overrides)
    assert not unread
    return recipe


@pytest.mark.parametrize("name", REFERENCE)
def test_the_references_recipes_load_unchanged(name: str, tmp_path: Path) -> None:
    values = REFERENCE[name]
    recipe, unread = read_recipe(write(tmp_path / f"{name}.yaml", values))
    assert recipe.task == TASKS.get(name, "retrieval")
    assert set(unread) == UNREAD[name]
    for key, value in values.items():
        key = {"batch_size_train": "batch_size"}.get(key, key)
        if key in UNREAD[name]:
            continue
        found = getattr(recipe, key)
        if isinstance(found, float):
            value = float(value)
        assert found == (tuple(value) if isinstance(value, list) else value), key
        assert type(found) is not str or type(value) is str


def test_generations_length_does_not_cut_training_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", REFERENCE["caption_coco"])
    assert read_recipe(path)[0].max_length == 40
    assert read_recipe(path, ["max_length=25"])[0].max_length == 25
    assert read_recipe(write(path, {"task": "caption", "max_length": 20}))[0].max_length == 20


def test_the_task_is_told_by_keys_then_by_the_files_name(tmp_path: Path) -> None:
    path = write(tmp_path / "nlvr_mine.yaml", REFERENCE["vqa"])
    assert read_recipe(path)[0].task == "vqa"
    path = write(tmp_path / "mine.yaml", REFERENCE["nlvr"])
    with pytest.raises(ValueError, match=r"mine\.yaml names no task, and its keys do not tell"):
        read_recipe(path)
    assert read_recipe(path, ["task=nlvr"])[0].task == "nlvr"
    write(path, {**REFERENCE["vqa"], "laion_path": ""})
    with pytest.raises(ValueError, match="its keys tell pretrain and vqa; add task="):
        read_recipe(path)
    with pytest.raises(ValueError, match="task is 'captions'; it must be one of pretrain, cap"):
        read_recipe(path, ["task=captions"])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pretrain", (224, 0.2, 30, 30, 2.0, "step", 0.0, 1e-6)),
        ("caption_coco", (384, 0.5, 30, 40, 1.0, "cosine", 0.0, 0.0)),
        ("retrieval_coco", (384, 0.5, 30, 35, 1.0, "cosine", 0.0, 0.0)),
        ("vqa", (480, 0.5, 50, 35, 1.0, "cosine", 0.1, 0.0)),
        ("nlvr", (384, 0.5, 40, 30, 1.0, "cosine", 0.1, 0.0)),
    ],
)
def test_what_the_references_code_sets(name: str, expected: tuple[Any, ...]) -> None:
    """The values that are in none of its files (BLIP's data/__init__.py, train_*.py, models)."""
    r = made(name)
    assert expected == (
        r.image_size, r.min_scale, r.max_words, r.max_length, r.alpha_epochs, r.schedule,
        r.drop_path, r.min_lr,
    )  # fmt: skip
    assert (r.seed, r.momentum, r.label_smoothing, r.text_dropout) == (42, 0.995, 0.1, 0.1)
    assert (r.weight_decay, r.decay_norm_and_bias, r.clip_grad_norm) == (0.05, True, None)
    assert (r.workers, r.queue_size, r.accumulate, r.dtype) == (4, 57_600, 1, "float32")
    assert replace(r, vit="large").drop_path == 0.1
    assert replace(r, vit="large", drop_path_rate=0.3).drop_path == 0.3


@pytest.mark.parametrize("name", REFERENCE)
def test_the_packaged_recipes_have_the_references_values(name: str) -> None:
    recipe = made(name)
    paths = {"pretrained", "train_file", "image_root", "ann_root", "vqa_root", "vg_root"}
    for key, value in REFERENCE[name].items():
        key = {"batch_size_train": "batch_size"}.get(key, key)
        if key not in paths | {"train_files"} | UNREAD[name]:
            found = getattr(recipe, key)
            assert found == (float(value) if isinstance(found, float) else value), key


def test_every_packaged_recipe_is_complete() -> None:
    names = {path.stem for path in PACKAGED.glob("*.yaml")}
    assert names == {*REFERENCE, "photos_small"}
    for name in names:
        assert yaml.safe_load(find_recipe(name).read_text())["task"] == made(name).task


def test_keys_are_frozen() -> None:
    """A new setting is a decision: it needs a line here and one in the class's documentation."""
    assert [f.name for f in dataclasses.fields(Recipe)] == KEYS
    documented = Recipe.__doc__ or ""
    assert [key for key in KEYS if f" {key}:" not in documented and f" {key}," not in documented
            and f", {key}" not in documented] == []  # fmt: skip


@pytest.mark.parametrize("name", [*REFERENCE, "photos_small"])
def test_what_is_written_reads_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = made(name, "init_lr=1e-7", "min_lr=0", "warmup_lr=0", "image_root=/a b/ä")
    recipe = replace(recipe, train_file=("a.json", "s/{000..099}.tar"), clip_grad_norm=1.0)
    recipe.write(tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == (recipe, [])
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert list(written) == KEYS
    assert written["init_lr"] == 1e-7, "a number, not a text"


@pytest.mark.parametrize(
    "word, key, expected",
    [
        ("init_lr=1e-5", "init_lr", 1e-5),
        ("init_lr=.5", "init_lr", 0.5),
        ("weight_decay=0", "weight_decay", 0.0),
        ("max_epoch=1e2", "max_epoch", 100),
        ("max_steps=5000", "max_steps", 5000),
        ("max_steps=none", "max_steps", None),
        ("clip_grad_norm=null", "clip_grad_norm", None),
        ("freeze_vision=True", "freeze_vision", True),
        ("freeze_vision=off", "freeze_vision", False),
        ("train_file=a.json", "train_file", ("a.json",)),
        ("train_file=[a.json,'b c.json']", "train_file", ("a.json", "b c.json")),
        ("train_file={00..99}.tar", "train_file", ("{00..99}.tar",)),
        ("train_file=", "train_file", ()),
        ("image_root=2014", "image_root", "2014"),
        ("image_root=a=b", "image_root", "a=b"),
        ("laion_path=null", "laion_path", "null"),
        ("vision.depth=6", "vision", {"depth": 6}),
        ("vision={layer_norm_eps: 1e-12}", "vision", {"layer_norm_eps": 1e-12}),
        ("loggers=tensorboard", "loggers", ("tensorboard",)),
        ("loggers=[tensorboard, wandb]", "loggers", ("tensorboard", "wandb")),
        ("queue_size=0", "queue_size", 0),
        ("queue_size=1234567", "queue_size", 1_234_567),
        ("batch_size=7", "batch_size", 7),
        ("batch_size_train=7", "batch_size", 7),
        ("--batch-size=7", "batch_size", 7),
    ],
)  # fmt: skip
def test_overrides_have_their_keys_type(word: str, key: str, expected: Any) -> None:
    found = getattr(made("pretrain", word, *_quiet(word)), key)
    assert found == expected and type(found) is type(expected)


def _quiet(word: str) -> list[str]:
    """What must change along, so that a small or large rate contradicts no other."""
    return ["warmup_steps=10", "min_lr=0"] if word.startswith(("init_lr", "max_steps")) else []


def test_text_keeps_its_spaces() -> None:
    assert made("caption_coco", "prompt=a photo of ").prompt == "a photo of "
    assert made("caption_coco", "prompt=").prompt == ""


def test_overrides_go_before_the_file_and_sizes_join(tmp_path: Path) -> None:
    sizes = {"depth": 3, "width": 128, "heads": 2}
    path = write(tmp_path / "a.yaml", {"task": "pretrain", "batch_size_train": 5, "vision": sizes})
    recipe, _ = read_recipe(path, ["batch_size=6", "vision.depth=2", "vision.depth=4", "task=vqa"])
    assert (recipe.batch_size, recipe.task) == (6, "vqa")
    assert recipe.vision == {"depth": 4, "width": 128, "heads": 2}


def test_what_the_task_does_not_look_at_is_named() -> None:
    recipe, unread = read_recipe(
        "caption_coco", ["queue_size=99", "momentum=0.995", "k_test=5", "negative_all_rank=false"]
    )
    assert set(unread) == {"queue_size", "k_test", "negative_all_rank"}
    assert recipe.queue_size == 99
    assert read_recipe("nlvr", ["max_length=50"])[1] == ["max_length"]


@pytest.mark.parametrize(
    "name, words, message",
    [
        ("pretrain", "batchsize=3", r"no setting 'batchsize'; did you mean batch_size"),
        ("pretrain", "learning_rate=3", r"no setting 'learning_rate'; did you mean"),
        ("pretrain", "xyzzyx=3", r"no setting 'xyzzyx'; there are task, seed, .*batch_size"),
        ("pretrain", "vision.dept=3", r"vision has no size 'dept'; did you mean depth"),
        ("pretrain", "vision.image_size=64", r"image_size is a key of its own"),
        ("pretrain", "vision=4", r"vision is 4; write vision\.depth=4"),
        ("pretrain", "batch_size", r"'batch_size' is no setting; write key=value"),
        ("pretrain", "=3", r"'=3' is no setting"),
        ("pretrain", "batch_size=two", r"batch_size is 'two'; it must be a whole number"),
        ("pretrain", "batch_size=2.5", r"batch_size is '2\.5'; it must be a whole number"),
        ("pretrain", "batch_size=true", r"batch_size is 'true'; it must be a whole number"),
        ("pretrain", "batch_size=inf", r"batch_size is 'inf'; it must be a whole number"),
        ("pretrain", "batch_size=0", r"batch_size is 0; it must be at least 1"),
        ("pretrain", "accumulate=0", r"accumulate is 0; it must be at least 1"),
        ("pretrain", "queue_size=-1", r"queue_size is -1; it must be at least 0"),
        ("pretrain", "init_lr=fast", r"init_lr is 'fast'; it must be a number, as 0\.05 or 1e-5"),
        ("pretrain", "init_lr=0", r"init_lr is 0\.0; it must be more than 0"),
        ("pretrain", "init_lr=nan", r"init_lr is nan; it must be finite"),
        ("pretrain", "clip_grad_norm=0", r"clip_grad_norm is 0\.0; .* more than 0, or none"),
        ("pretrain", "freeze_vision=1", r"freeze_vision is '1'; it must be true or false"),
        ("pretrain", "vit=huge", r"vit is 'huge'; it must be one of base, large, scenes"),
        ("pretrain", "dtype=float16", r"dtype is 'float16'; .* float32, bfloat16"),
        ("pretrain", "alpha=1.5", r"alpha is 1\.5; it must be from 0 to 1"),
        ("pretrain", "label_smoothing=1", r"label_smoothing is 1\.0; .* less than 1"),
        ("pretrain", "min_scale=0", r"min_scale is 0\.0; it must be more than 0 and at most 1"),
        ("pretrain", "loggers=mlflow", r"'mlflow'; there are tensorboard and wandb"),
        ("pretrain", "train_file=[a", r"'\[a' is no list; write \[one,two\]"),
        ("pretrain", "image_size=100", r"image_size 100 is not a positive multiple"),
        ("pretrain", "vision.heads=5", r"width 768 is not a multiple of its 5 heads"),
        ("pretrain", "max_steps=200", r"warmup_steps is 3000, more than max_steps 200"),
        ("pretrain", "init_lr=1e-7", r"min_lr is 1e-06, more than init_lr 1e-07"),
        ("pretrain", "max_length=513", r"max_length is 513, .* has 512 positions"),
        ("pretrain", "vit_ckpt_layer=13", r"vit_ckpt_layer is 13, .* has 12 layers"),
        ("retrieval_coco", "vit_ckpt_layer=0", r"vit_ckpt_layer 0 recomputes no layer"),
        ("caption_coco", "vision.depth=3", r"which has all weights and sizes; leave out vision$"),
        ("caption_coco", "text_init=bert", r"leave out text_init$"),
        ("vqa", "image_root=a vg_root=b", r"image_root is 'a', and vqa_root or vg_root"),
        ("pretrain", "freeze_vision=true vision_layer_decay=0.9", r"freeze_vision is true and"),
        ("pretrain", "batch_size=2 batch_size_train=3", r"batch_size is given twice"),
        ("nowhere", "", r"no recipe nowhere; give a YAML file, or one of caption_coco, nlvr"),
    ],
)
def test_what_is_refused_and_how(name: str, words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe(name, words.split())


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "is no YAML"),
        ("- a\n- b", "holds a list; a recipe is `key: value` lines"),
        ("task: pretrain\nimage_root: 5", "image_root is 5; it must be text, in quotes"),
        ("task: pretrain\nbatch_size:", "batch_size is None; it must be a whole number"),
        ("task: pretrain\nbatch_size: true", "batch_size is True; it must be a whole number"),
        ("task: pretrain\nfreeze_vision: 1", "freeze_vision is 1; it must be true or false"),
        ("run:\n  batch_size: 5", "no setting 'run'"),
        ("batch_size: 5\nbatch_size_train: 5", "batch_size is given twice"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "a.yaml")


def test_warmup_may_fill_a_run_and_cosine_has_none() -> None:
    assert made("pretrain", "max_steps=3000").warmup_steps == 3000
    recipe, _ = build_recipe({"task": "caption", "warmup_steps": 50, "max_steps": 10})
    assert recipe.warmup_steps == 50


def test_the_references_manifests() -> None:
    def manifests(**values: Any) -> tuple[str, ...]:
        return build_recipe(values)[0].manifests

    assert manifests(task="caption", ann_root="a") == ("a/coco_karpathy_train.json",)
    assert manifests(task="retrieval", ann_root="a") == ("a/coco_karpathy_train.json",)
    assert manifests(task="retrieval", ann_root="a", dataset="flickr") == (
        "a/flickr30k_train.json",
    )
    assert manifests(task="nlvr", ann_root="a") == ("a/nlvr_train.json",)
    assert manifests(task="vqa", ann_root="a", train_files=["x", "y"]) == ("a/x.json", "a/y.json")
    assert manifests(task="nlvr", ann_root="a", train_file="mine.json") == ("mine.json",)
    assert manifests(task="nlvr") == ()


def test_files_are_checked_before_a_model_is_built(tmp_path: Path) -> None:
    data, vocabulary, weights = (tmp_path / n for n in ("a.json", "words.txt", "model.pth"))
    recipe = build_recipe({"task": "caption"})[0]

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            check_files(replace(recipe, **changes))

    refused("names no data; set train_file")
    recipe = replace(recipe, train_file=(str(data),), vocabulary=str(vocabulary))
    refused(r"train_file names .*a\.json, which does not exist")
    data.write_text("[]")
    refused(r"vocabulary names .*words\.txt")
    vocabulary.write_text("\n".join(tiny_vocabulary()))
    check_files(recipe)
    refused("image_root names nowhere", image_root="nowhere")
    refused("laion_path names nowhere", laion_path="nowhere")
    check_files(replace(recipe, train_file=("s3://b/{00..99}.tar",), image_root="https://x"))
    refused("pretrained is the address https://x/m.pth; download it", pretrained="https://x/m.pth")
    refused(r"pretrained is .*model\.pth, which is no file", pretrained=str(weights))
    refused("pretrained is no/such.pth, which is no file", pretrained="no/such.pth")
    refused("vision_init is bert, which is no file or folder", vision_init="bert")
    refused("the start from nothing carries no vocabulary", vocabulary="")
    check_files(replace(recipe, pretrained="Salesforce/blip", vocabulary=""))
    weights.touch()
    check_files(replace(recipe, pretrained=str(weights)))
    refused(r"model\.pth carries no vocabulary", pretrained=str(weights), vocabulary="")
    refused("carries no vocabulary", text_init=str(tmp_path), vocabulary="")
    vocabulary.rename(tmp_path / "vocab.txt")
    check_files(replace(recipe, pretrained=str(weights), vocabulary=""))
    check_files(replace(recipe, text_init=str(tmp_path), vocabulary=""))
