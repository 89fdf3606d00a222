"""From a recipe to a trained model: the one place where all parts of training meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_fast.config import BlipConfig, preset
from blip_fast.data import open_in_turns, open_source
from blip_fast.data.samples import Source
from blip_fast.images import Decoded, ImageOptions
from blip_fast.images.augment import Augment
from blip_fast.images.resize import resize
from blip_fast.med.blip import MED
from blip_fast.med.weights.start import start
from blip_fast.text import Tokenizer
from blip_fast.train.captioning import Captioning
from blip_fast.train.itc import MomentumContrast
from blip_fast.train.loader import Loader
from blip_fast.train.loop import Summary, train
from blip_fast.train.nlvr import NLVR
from blip_fast.train.objective import Objective
from blip_fast.train.order import Order
from blip_fast.train.pretrain import Pretrain
from blip_fast.train.processes import processes, rank, world
from blip_fast.train.recipe import Recipe
from blip_fast.train.recipe_checks import check_files
from blip_fast.train.retrieval import Retrieval
from blip_fast.train.vqa import VQA


def run(
    recipe: Recipe,
    output: Path,
    tell: Callable[[str], None] = print,
    sources: Sequence[Source] | None = None,
) -> Summary:
    """Train as a recipe says, or go on with what a folder holds of the same run.

    Alone, or in each of the processes that torchrun started.

    Args:
        output: the run's folder.
        tell: takes lines for people; called by the first process.
        sources: the fixed part of every epoch, in place of the recipe's files.

    Raises:
        ValueError: where recipe, data or folder do not fit; see `train`.
    """
    with processes("cuda" if torch.cuda.is_available() else "cpu") as device:
        say = tell if rank() == 0 else _silent
        check_files(recipe, has_sources=sources is not None)
        model, tokenizer, notes = start(
            recipe.task,
            config=config_of(recipe),
            image_size=recipe.image_size,
            pretrained=recipe.pretrained,
            vision_init=recipe.vision_init,
            text_init=recipe.text_init,
            vocabulary=recipe.vocabulary,
            seed=recipe.seed,
        )
        for note in notes:
            say(note)
        model.regularise(recipe.text_dropout, recipe.drop_path)
        objective = objective_of(recipe, model, tokenizer)
        loader = loader_of(recipe, objective, sources)
        if rank() == 0:
            output.mkdir(parents=True, exist_ok=True)
            recipe.write(output / "recipe.yaml")
        return train(recipe, output, objective, loader, tokenizer, device, say)


def config_of(recipe: Recipe) -> BlipConfig:
    """Sizes of a model that starts from nothing, or from a ViT and a BERT."""
    base = preset(recipe.vit, recipe.task)
    return replace(
        base,
        vision=replace(base.vision, **{**recipe.vision, "image_size": recipe.image_size}),
        text=replace(base.text, **recipe.text),
    )


def objective_of(recipe: Recipe, model: MED, tokenizer: Tokenizer) -> Objective[Any]:
    """The task of a recipe around a model of its kind."""
    smoothing, length, words = recipe.label_smoothing, recipe.max_length, recipe.max_words
    if recipe.task == "pretrain":
        return Pretrain(
            model,
            tokenizer,
            _contrast(recipe, model),
            label_smoothing=smoothing,
            max_length=length,
            max_words=words,
        )
    if recipe.task == "retrieval":
        return Retrieval(
            model,
            tokenizer,
            _contrast(recipe, model),
            negative_all_rank=recipe.negative_all_rank,
            max_length=length,
            max_words=words,
        )
    if recipe.task == "caption":
        return Captioning(
            model,
            tokenizer,
            prompt=recipe.prompt,
            label_smoothing=smoothing,
            max_length=length,
            max_words=words,
        )
    if recipe.task == "vqa":
        return VQA(model, tokenizer, label_smoothing=smoothing, max_length=length, max_words=words)
    return NLVR(model, tokenizer, max_words=words)


def _contrast(recipe: Recipe, model: MED) -> MomentumContrast:
    return MomentumContrast(
        model,
        recipe.queue_size,
        recipe.momentum,
        recipe.alpha,
        recipe.alpha_epochs,
        recipe.seed,
    )


def loader_of(
    recipe: Recipe, objective: Objective[Any], sources: Sequence[Source] | None = None
) -> Loader[Any]:
    """The batches of this process.

    Args:
        sources: the fixed part of every epoch, in place of the recipe's files.
    """
    fixed = list(sources) if sources is not None else fixed_sources(recipe)
    order = Order(
        fixed,
        rotating_sources(recipe),
        recipe.laion_files_per_epoch,
        recipe.seed,
        recipe.window,
        together=recipe.together,
    )
    size = recipe.image_size
    return Loader(
        order,
        batch_size=recipe.batch_size,
        rank=rank(),
        world_size=world(),
        augment=Augment(size, recipe.min_scale) if recipe.augment else _resized(size),
        image_options=ImageOptions(size=size),
        collate=objective.collate,
        workers=recipe.workers,
        seed=recipe.seed,
    )


def fixed_sources(recipe: Recipe) -> list[Source]:
    """What `train_file`, or the reference's folders of annotations, name."""
    root: Any = recipe.image_root or None
    if recipe.task == "vqa" and (recipe.vqa_root or recipe.vg_root):
        root = {"vqa": recipe.vqa_root, "vg": recipe.vg_root}
    # Shards and folders hold their pictures themselves.
    named = (".json", ".jsonl", ".parquet")
    return [
        open_source(name, image_root=root if name.endswith(named) else None)
        for name in recipe.manifests
    ]


def rotating_sources(recipe: Recipe) -> list[Source]:
    """The web sources that take turns: each file of the folder or pattern is one."""
    if not recipe.laion_path:
        return []
    return open_in_turns(
        recipe.laion_path,
        image_root=recipe.image_root or None,
        keep=recipe.laion_files_per_epoch + 1,
    )


def _resized(size: int) -> Callable[[Decoded, int], Tensor]:
    """Pictures as they are, for worlds in which a mirror or a shift would make a caption false."""

    def augment(image: Decoded, seed: int) -> Tensor:
        return resize(image, size)

    return augment


def _silent(text: str) -> None:
    """What processes other than the first say."""
