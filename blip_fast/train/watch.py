"""How a run is doing: a line on the terminal, `log.jsonl`, and whatever logger was asked for.

A line of `log.jsonl` is a JSON object: every `log_steps` steps

    {"step", "epoch", "loss", "loss_<part>"..., "lr", "grad_norm", "images_per_second", "mfu",
     "peak_memory_bytes", "data_wait", "skipped"}

with means over the steps since the line before, and at the end of an epoch, as in the reference's
log.txt, {"train_lr", "train_loss", "train_loss_<part>"..., "epoch", "step"}. `mfu` is explained in
`flops.py`; `data_wait` is the share of the time that steps waited for their batches.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from blip_fast.data import replacing
from blip_fast.train.vigil import Seen

LOG = "log.jsonl"
LOGGERS = ("tensorboard", "wandb")


class Logger(Protocol):
    """Something else that takes numbers."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Sums:
    """Sums over steps, which a checkpoint carries so that means survive a restart."""

    def __init__(self, count: int = 0, values: Mapping[str, float] | None = None) -> None:
        self.count, self.values = count, dict(values or {})

    def add(self, values: Mapping[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.values[name] = self.values.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.values.items()}

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "values": self.values}


class Watch:
    """The log of a run.

    Args:
        output: the run's folder.
        writes: whether this process is the one that writes; all of them keep the sums.
        log_steps: steps between two lines.
        loggers: of `LOGGERS`; their packages are imported here.
        peak: of the device, FLOP/s.
        say: takes a line for the terminal.
        step: the last one of a run that goes on; what was logged of later ones is removed.
        state: of the `Watch` that saw that step.

    Raises:
        ValueError: where a logger is unknown or its package is not installed.
    """

    def __init__(
        self,
        output: Path,
        device: torch.device,
        *,
        writes: bool,
        log_steps: int,
        loggers: Sequence[str],
        peak: float,
        say: Callable[[str], None],
        step: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._log, self._device, self._writes = output / LOG, device, writes
        self._log_steps, self._peak, self._say = log_steps, peak, say
        self._loggers = [_open_logger(name, output, step) for name in loggers] if writes else []
        state = state or {"interval": {}, "epoch": {}}
        self.interval, self.epoch_sums = Sums(**state["interval"]), Sums(**state["epoch"])
        if writes and self._log.exists():
            _cut(self._log, step)
        self._start_measuring()

    def state(self) -> dict[str, Any]:
        """What a `Watch` that goes on is given; JSON values."""
        return {"interval": self.interval.state(), "epoch": self.epoch_sums.state()}

    def measure(self, images: int, flops: int, waited: float) -> None:
        """Note what a step did: images of all processes, FLOPs of this one, seconds waited."""
        self._images += images
        self._flops += flops
        self._waited += waited

    def add(self, seen: Seen, epoch: int, of: int) -> None:
        """Take in a step, and write a line where one is due.

        Args:
            of: the last step of the epoch, or of the run.
        """
        values = {
            "loss": sum(seen.losses.values()),
            **{f"loss_{name}": value for name, value in seen.losses.items()},
            "lr": seen.rate,
        }
        self.epoch_sums.add(values)
        self.interval.add({**values, "grad_norm": seen.norm})
        if seen.step % self._log_steps == 0:
            record = {"step": seen.step, "epoch": epoch, **self.interval.means()}
            record |= {"lr": seen.rate, **self._measured(), "skipped": seen.skipped}
            self._write(record, seen.step)
            self._say(_line(record, of))
            self.interval = Sums()

    def end_epoch(self, epoch: int, step: int) -> None:
        means = {f"train_{name}": value for name, value in self.epoch_sums.means().items()}
        self._write({**means, "epoch": epoch, "step": step}, step)
        self.epoch_sums = Sums()

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()

    def _start_measuring(self) -> None:
        self._since = time.perf_counter()
        self._images, self._flops, self._waited = 0, 0, 0.0

    def _measured(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._since
        values = {
            "images_per_second": self._images / seconds,
            "mfu": self._flops / (seconds * self._peak),
            "peak_memory_bytes": peak_memory(self._device),
            "data_wait": self._waited / seconds,
        }
        self._start_measuring()
        return values

    def _write(self, record: Mapping[str, Any], step: int) -> None:
        if not self._writes:
            return
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record, allow_nan=False) + "\n")
        for logger in self._loggers:
            logger.log({k: v for k, v in record.items() if k != "step"}, step)


def peak_memory(device: torch.device) -> int:
    """Bytes at most: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _line(record: Mapping[str, Any], of: int) -> str:
    parts = [
        f"{name.removeprefix('loss_')} {value:.4f}"
        for name, value in record.items()
        if name.startswith("loss")
    ]
    bad = f"  bad samples {record['skipped']}" if record["skipped"] else ""
    return (
        f"epoch {record['epoch']}  step {record['step']}/{of}  {'  '.join(parts)}  "
        f"lr {record['lr']:.2e}  {record['images_per_second']:.1f} images/s  "
        f"MFU {record['mfu']:.1%}  memory {record['peak_memory_bytes'] / 1e9:.2f} GB  "
        f"waiting for data {record['data_wait']:.1%}{bad}"
    )


def _cut(log: Path, step: int) -> None:
    """Remove what was logged of later steps, and a line that was half written."""
    kept = [line for line in log.read_bytes().splitlines(True) if _is_until(line, step)]
    with replacing(log) as temporary:
        temporary.write_bytes(b"".join(kept))


def _is_until(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and of no later step."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _open_logger(name: str, output: Path, step: int) -> Logger:
    if name not in LOGGERS:
        raise ValueError(f"there is no logger {name!r}; there are {', '.join(LOGGERS)}")
    try:
        return _TensorBoard(output, step) if name == "tensorboard" else _WandB(output)
    except ImportError as error:
        raise ValueError(
            f"the logger {name!r} needs the package {name}, which cannot be imported ({error}); "
            f"pip install {name}"
        ) from error


class _TensorBoard:
    def __init__(self, output: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(output / "tensorboard", purge_step=step + 1 if step else None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, output: Path) -> None:
        import wandb

        # The folder's own number, so that a resumed run goes on in the same place.
        number = hashlib.blake2b(str(output.resolve()).encode(), digest_size=8).hexdigest()
        self._run = wandb.init(
            project="blip_fast", name=output.name, id=number, resume="allow", dir=output
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
