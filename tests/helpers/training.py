"""Training at the smallest size: recipes, batches by number, and processes to run it in."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from factories import randomise, tiny_config, tiny_vocabulary

from blip_fast.data.batches import stable_seed
from blip_fast.data.samples import Sample
from blip_fast.med.blip import MED
from blip_fast.text import Tokenizer
from blip_fast.train.captioning import Captioning
from blip_fast.train.itc import MomentumContrast
from blip_fast.train.objective import Example, Objective
from blip_fast.train.pretrain import Pretrain

CPU = torch.device("cpu")
WORDS = "red blue green dog cat bird horse man woman".split()


def tiny_recipe(**changes: Any) -> SimpleNamespace:
    """What the engine asks of a recipe, for a run of a few steps."""
    values: dict[str, Any] = dict(
        task="caption", seed=42, vit_grad_ckpt=False, vit_ckpt_layer=0, text_grad_ckpt=False,
        freeze_vision=False, vision_layer_decay=1.0, batch_size=2, accumulate=1, max_epoch=2,
        max_steps=None, init_lr=1e-3, min_lr=0.0, warmup_lr=1e-6, warmup_steps=2,
        lr_decay_rate=0.9, schedule="step", weight_decay=0.05, decay_norm_and_bias=True,
        clip_grad_norm=None, dtype="float32", checkpoint_steps=2, keep_checkpoints=3, log_steps=1,
        loggers=[], text_dropout=0.1,
    )  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def tiny_objective(task: str = "caption", text_dropout: float = 0.0) -> Objective[Any]:
    """A task over a random model of `tiny_config`."""
    tokenizer = Tokenizer(tiny_vocabulary())
    model = MED(tiny_config("caption" if task == "caption" else "pretrain"))
    randomise(model.named_parameters(), 0)
    model.regularise(text_dropout, drop_path=0.1 if text_dropout else 0.0)
    if task == "caption":
        return Captioning(model, tokenizer, prompt="")
    contrast = MomentumContrast(model, 12, momentum=0.9, alpha=0.4, alpha_epochs=1, seed=0)
    return Pretrain(model, tokenizer, contrast)


class Examples:
    """A loader of made-up examples: epochs of one length, found by number like a real one's.

    Args:
        task: whose `collate` makes the batches.
        poison: the number of a sample, counted over the run, that is passed to `spoil`.
    """

    def __init__(
        self,
        task: Objective[Any],
        batch_size: int,
        length: int = 13,
        rank: int = 0,
        world_size: int = 1,
        poison: int | None = None,
    ) -> None:
        self.task, self.batch_size, self.length = task, batch_size, length
        self.rank, self.world_size, self.poison = rank, world_size, poison
        self.skipped: dict[str, int] = {}
        self.first_skipped: dict[str, str] = {}

    def steps(self, epoch: int, start: int = 0) -> int:
        return (self.length - start) // (self.batch_size * self.world_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        for step in range(self.steps(epoch, start)):
            first = start + (step * self.world_size + self.rank) * self.batch_size
            numbers = range(first, first + self.batch_size)
            yield self.task.collate([self.example(epoch, number) for number in numbers])

    def example(self, epoch: int, number: int) -> Example:
        """A picture of noise and three words: every caption has as many tokens."""
        key = epoch * self.length + number
        generator = torch.Generator().manual_seed(stable_seed(str(key), 0))
        pixels = torch.randint(0, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8)
        words = torch.randint(len(WORDS), (3,), generator=generator).tolist()
        text = " ".join(WORDS[i] for i in words)
        name = "poison" if key == self.poison else f"sample {key}"
        return Example(Sample(name, (Path(name),), text, name), pixels, seed=key)


def run_processes(function: Callable[..., None], number: int, *args: Any) -> list[int]:
    """Run `function(*args)` in processes that know each other as torchrun's do.

    They are forked from a server that has imported torch once, before it used any thread.

    Args:
        function: of a module, by name.
        number: of processes; one alone gets no process group.

    Returns:
        Their exit codes, in order of rank.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.checkpoint", "training"])
    # They meet at a store of this process, as at torchrun's: a free port that the first of them
    # were to listen on could be taken before it does.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [
        context.Process(target=_child, args=(function, rank, number, store.port, args))
        for rank in range(number)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode or 0 for child in children]


def _child(
    function: Callable[..., None], rank: int, number: int, port: int, args: Sequence[Any]
) -> None:
    torch.set_num_threads(1)
    if number > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(number),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    function(*args)
