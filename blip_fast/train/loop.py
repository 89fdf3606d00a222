"""The training loop: any objective, any loader, and nothing lost but the steps since a checkpoint.

Every draw of a step comes from (seed, step, micro-batch, process) alone, and every batch from its
place in the epoch, so a run that goes on from a checkpoint needs neither the state of a generator
nor that of a loader, and ends with the same bits.

A run's folder:

    log.jsonl                   see watch.py
    checkpoints/step-00000100/  see checkpoint.py
    model/                      the model after the last epoch, or at the end
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from blip_fast.data import stable_seed
from blip_fast.text import Tokenizer
from blip_fast.train.checkpoint import Checkpointer, tensors_of
from blip_fast.train.export import export
from blip_fast.train.flops import FlopCounter, peak_flops
from blip_fast.train.guard import STOPPED, StopRequest, alone, stop_request
from blip_fast.train.memory import give_back
from blip_fast.train.objective import Batch, Objective
from blip_fast.train.optim import adamw, choose_trained, schedule, set_rate
from blip_fast.train.parallelize import parallelize, synchronise_gradients
from blip_fast.train.processes import of_first, rank, world
from blip_fast.train.vigil import Vigil
from blip_fast.train.watch import Watch

if TYPE_CHECKING:
    from blip_fast.train.recipe import Recipe


class Batches(Protocol):
    """What the loop asks of a loader; `start` counts samples of all processes."""

    @property
    def skipped(self) -> Mapping[str, int]: ...

    @property
    def first_skipped(self) -> Mapping[str, str]: ...

    def steps(self, epoch: int, start: int = 0) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        epoch: the one under way, counted from 0.
        consumed: samples of it that all processes together have trained on.
        watch: sums of losses that a later line of the log needs.
    """

    step: int = 0
    epoch: int = 0
    consumed: int = 0
    watch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        step, epoch: optimizer steps and whole epochs done, those before a resume included.
        resumed_from: the step of the checkpoint it went on from; None where it began anew.
        losses: by name, of the last step; empty where no step was left to do.
        model: the folder of the trained model.
    """

    step: int
    epoch: int
    resumed_from: int | None
    losses: dict[str, float]
    model: Path


def train(
    recipe: Recipe,
    output: Path,
    objective: Objective[Any],
    loader: Batches,
    tokenizer: Tokenizer,
    device: torch.device,
    say: Callable[[str], None] | None = None,
) -> Summary:
    """Train from the newest checkpoint in a folder, or from the objective as it is.

    On SIGTERM the step is finished, a checkpoint saved, and the process exits with code 143
    (SystemExit); the same call goes on from there. All processes do so when one is asked.

    Args:
        output: the run's folder.
        objective: its model in float32; it is changed in place.
        loader: gives batches of `recipe.batch_size` for this process.
        tokenizer: written beside the trained model.
        say: takes lines for people, from the first process; they are printed by default.

    Raises:
        NonFinite: naming step and samples where a loss or gradient is not finite; checkpoints of
            earlier steps are untouched.
        ValueError: where the folder belongs to another run, or the data make no step.
        OSError: where a checkpoint cannot be written.
    """
    with alone(output), stop_request() as stop:
        say = (say or _print) if rank() == 0 else _be_silent
        run = _Run(recipe, output, objective, loader, tokenizer, device, stop, say)
        with closing(run):
            return run.run()


class _Run:
    """The parts of a run and its state."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        objective: Objective[Any],
        loader: Batches,
        tokenizer: Tokenizer,
        device: torch.device,
        stop: StopRequest,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.loader, self.tokenizer, self.device = recipe, loader, tokenizer, device
        self.stop, self.stopping, self.say = stop, False, say
        self.losses: dict[str, float] = {}
        self.told: set[str] = set()  # kinds of bad samples
        self.folder, self.checkpoints = output / "model", output / "checkpoints"
        self.objective = objective.to(device).train()
        if recipe.freeze_vision:
            objective.model.vision.eval()  # without stochastic depth
        choose_trained(objective.model, recipe.freeze_vision)
        parallelize(objective, recipe, device)
        self.optimizer = adamw(objective.model, recipe)
        self.rate = schedule(recipe, self._total_steps())
        self.flops, self.vigil = FlopCounter(objective), Vigil(device)
        self.per_step = recipe.accumulate * recipe.batch_size * world()
        self.saver = Checkpointer(
            self.checkpoints, recipe.keep_checkpoints, _fingerprint(recipe, objective)
        )
        loaded = self.saver.load_latest(tensors_of(objective, self.optimizer))
        self.progress = Progress(**loaded.progress) if loaded else Progress()
        self.resumed_from = loaded.step if loaded else None
        dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
        self.watch = Watch(
            output,
            device,
            writes=rank() == 0,
            log_steps=recipe.log_steps,
            loggers=recipe.loggers,
            peak=peak_flops(device, dtype) if rank() == 0 else 1.0,
            say=say,
            step=self.progress.step,
            state=self.progress.watch,
        )

    def close(self) -> None:
        """Whatever happened: let what is being saved become complete."""
        try:
            self.saver.close()
        finally:
            self.watch.close()

    def run(self) -> Summary:
        progress = self.progress
        if self.resumed_from is not None:
            what = "finished at" if self._is_finished() else "goes on from"
            self.say(f"this run {what} step {progress.step}, epoch {progress.epoch}")
        if self._is_finished() and not of_first(self.folder.exists()):
            export(self.objective.model, self.tokenizer, self.folder)
        while not self._is_finished():
            self._epoch()
        self.saver.wait()
        return Summary(progress.step, progress.epoch, self.resumed_from, self.losses, self.folder)

    def _epoch(self) -> None:
        """What is left of the epoch under way, or of the steps that are allowed."""
        progress = self.progress
        steps = self._steps(progress.epoch, progress.consumed)
        if steps == 0 and progress.consumed == 0:
            raise ValueError(
                f"epoch {progress.epoch} has too few samples for one step of {self.per_step}: "
                f"batch_size {self.recipe.batch_size} x accumulate {self.recipe.accumulate} x "
                f"{world()} processes; add data or take a smaller batch_size"
            )
        self.last_step = progress.step + steps
        self.epoch_samples = self.per_step * self._steps(progress.epoch)
        with _closed(self.loader.batches(progress.epoch, progress.consumed)) as batches:
            while progress.step < self.last_step:
                self._step(batches)
                if progress.step == self.last_step or self._is_finished():
                    break  # what follows saves it
                if self.stopping or progress.step % self.recipe.checkpoint_steps == 0:
                    self._save()
                if self.stopping:
                    self._leave()
        self._settle()
        if progress.step == self.last_step:
            self.watch.end_epoch(progress.epoch, progress.step)
            progress.epoch, progress.consumed = progress.epoch + 1, 0
        # Before the checkpoint that says the epoch is done: a run that is killed in between does
        # its last steps again, and exports again.
        export(self.objective.model, self.tokenizer, self.folder)
        self._save()
        if self.stopping and not self._is_finished():
            self._leave()

    def _step(self, batches: Iterator[Batch]) -> None:
        recipe, progress, objective = self.recipe, self.progress, self.objective
        rate = self.rate(progress.step, progress.epoch)
        set_rate(self.optimizer, rate)
        epochs = progress.epoch + min(1.0, progress.consumed / self.epoch_samples)
        flops, waited = self.flops.total, 0.0
        losses: list[Mapping[str, Tensor]] = []
        keys = []
        objective.before_step()
        for micro in range(recipe.accumulate):
            since = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - since
            _seed_all(stable_seed(f"{progress.step}/{micro}/{rank()}", recipe.seed))
            synchronise_gradients(objective, micro == recipe.accumulate - 1)
            with self.flops.counting():
                losses.append(objective(batch.to(self.device), epochs))
            keys.append(batch.keys)
            (torch.stack(list(losses[-1].values())).sum() / recipe.accumulate).backward()
        norm = self._clip()
        progress.step += 1
        progress.consumed += self.per_step
        self._tell_skipped()
        skipped = sum(self.loader.skipped.values())
        self.vigil.report(progress.step, rate, losses, keys, norm, self.stop.asked, skipped)
        self.watch.measure(self.per_step, self.flops.total - flops, waited)
        self._look()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if progress.step % recipe.log_steps == 0:
            give_back()

    def _clip(self) -> Tensor:
        """The norm of all gradients, which are scaled down where it is too large."""
        parameters = [p for p in self.objective.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.recipe.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_grad_norm, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _tell_skipped(self) -> None:
        """Say of the first bad sample of each kind what is wrong; the log counts them all."""
        for status, reason in dict(self.loader.first_skipped).items():
            if status not in self.told:
                self.told.add(status)
                self.say(f"a bad sample is replaced by another, {status}: {reason}")

    def _look(self, at_all: bool = False) -> None:
        last = min(self.last_step, self.recipe.max_steps or self.last_step)
        for seen in self.vigil.look(at_all):
            self.watch.add(seen, self.progress.epoch, last)
            self.losses = seen.losses
            self.stopping |= seen.stop

    def _settle(self) -> None:
        """Look at all steps done: nothing is kept of a state that nobody has looked at."""
        self._look(at_all=True)

    def _save(self) -> None:
        self._settle()
        self.progress.watch = self.watch.state()
        tensors = tensors_of(self.objective, self.optimizer)
        self.saver.save(self.progress.step, tensors, asdict(self.progress))

    def _leave(self) -> None:
        self.saver.wait()
        self.say(f"stopped at step {self.progress.step}; the same command goes on from there")
        raise SystemExit(STOPPED)

    def _is_finished(self) -> bool:
        recipe, progress = self.recipe, self.progress
        return progress.epoch >= recipe.max_epoch or (
            recipe.max_steps is not None and progress.step >= recipe.max_steps
        )

    def _steps(self, epoch: int, start: int = 0) -> int:
        return self.loader.steps(epoch, start) // self.recipe.accumulate

    def _total_steps(self) -> int:
        """Of the whole run; only one schedule asks, and counting may open every source."""
        recipe = self.recipe
        if recipe.schedule != "cosine_steps":
            return 0
        steps = sum(self._steps(epoch) for epoch in range(recipe.max_epoch))
        return steps if recipe.max_steps is None else min(steps, recipe.max_steps)


def _fingerprint(recipe: Recipe, objective: Objective[Any]) -> dict[str, Any]:
    """What a run cannot change on its way."""
    return {
        "task": recipe.task,
        "seed": recipe.seed,
        "freeze_vision": recipe.freeze_vision,
        "model": objective.model.config.to_dict(),
        "buffers": {name: list(buffer.shape) for name, buffer in objective.named_buffers()},
    }


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def _closed(batches: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Let a loader's iterator end its threads when nobody asks any more."""
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _print(line: str) -> None:
    print(line, flush=True)


def _be_silent(line: str) -> None:
    """What the other processes have to say."""
