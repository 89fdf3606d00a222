"""Checkpoints of a run: written while training goes on, whole or not there, read back anywhere.

torch's distributed checkpoints hold tensors by name, each process writing its shards, so that any
number of processes reads what any other number wrote. Around them, this file sees to it that no
moment of a crash costs more than the steps since the last one:

    step-00000200.tmp/     being written
    step-00000200/         complete: renamed after everything in it, `complete.json` last, was
                           written through to the disk
    step-00000200.damaged/ found to be not what `complete.json` says
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from blip_fast.train.processes import barrier, of_first, rank, world

MARK = "complete.json"
_NAME = re.compile(r"step-(\d{8,})")
_CHUNK = 1 << 24  # bytes


class Damaged(ValueError):
    """A checkpoint is not what it was when it was written; the message says why."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read.

    Attributes:
        progress: what `save` was given.
    """

    step: int
    progress: dict[str, Any]


def tensors_of(objective: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a run must keep, by name; reading into these tensors restores it.

    Parameters that two modules share appear once, under their first name.
    """
    named = dict(objective.named_parameters())
    tensors = {f"objective.{name}": p.detach() for name, p in named.items()}
    tensors |= {f"objective.{name}": buffer for name, buffer in objective.named_buffers()}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


class Checkpointer:
    """The checkpoints of one run.

    Args:
        folder: theirs alone; made where it does not exist.
        keep: how many to keep; older ones go once a newer one is complete.
        fingerprint: what a run that goes on must have in common with the one that wrote;
            JSON values.

    Raises:
        ValueError: where `keep` is not positive.
    """

    def __init__(self, folder: Path, keep: int, fingerprint: Mapping[str, Any]) -> None:
        if keep < 1:
            raise ValueError(f"keep_checkpoints is {keep}; it must be at least 1")
        self.folder, self.keep = folder, keep
        self.fingerprint = json.loads(json.dumps(fingerprint))
        # A group of its own, so that saving never meets the training's messages.
        self._group = dist.new_group(backend="gloo") if world() > 1 else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._saved_step = -1
        # In one process this is what is meant; the saving thread cannot silence it alone.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("step-*.tmp"):
                shutil.rmtree(left)
        barrier()

    def save(self, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Copy the tensors, and write the copy while the caller goes on.

        Waits for the save before. A step that is saved already is not saved again.

        Args:
            progress: JSON values, the same in all processes.

        Raises:
            OSError: where the save before failed.
        """
        self.wait()
        if step == self._saved_step:
            return
        writing = dcp.async_save(
            {"run": tensors},
            storage_writer=FileSystemWriter(self._path(step, ".tmp")),
            process_group=self._group,
            no_dist=self._group is None,
        )
        note = {"step": step, "progress": progress, "fingerprint": self.fingerprint}
        self._saving = self._thread.submit(self._finish, cast(Future[Any], writing), note)
        self._saved_step = step

    def wait(self) -> None:
        """Return when what was saved is complete.

        Raises:
            OSError: where it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            try:
                saving.result()
            except CheckpointException as error:
                raise OSError(f"a checkpoint could not be written: {error}") from error

    def close(self) -> None:
        """Wait, and let go of the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def load_latest(self, tensors: dict[str, Tensor]) -> Loaded | None:
        """Read the newest checkpoint that is whole, into the tensors.

        Damaged ones are skipped with a warning and renamed.

        Returns:
            None where there is none.

        Raises:
            ValueError: where it was written under another fingerprint; where there are checkpoints
                and all are damaged.
        """
        while (found := self._newest()) is not None:
            path, note = found
            self._check_fingerprint(path, note["fingerprint"])
            try:
                dcp.load(
                    {"run": tensors},
                    storage_reader=FileSystemReader(path),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            except (CheckpointException, RuntimeError) as error:
                if rank() == 0:
                    _put_aside(path, str(error).strip().splitlines()[-1])
                barrier()
                continue
            self._saved_step = note["step"]
            return Loaded(note["step"], note["progress"])
        damaged = of_first(sorted(path.name for path in self.folder.glob("step-*.damaged")))
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.folder} can be read: {', '.join(damaged)}; remove them "
                "to start anew"
            )
        return None

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its note, as the first process sees it."""
        found = None
        if rank() == 0:
            for path in reversed(self._complete()):
                try:
                    found = path, _read_note(path)
                    break
                except (Damaged, OSError) as error:
                    _put_aside(path, str(error))
        return of_first(found)

    def _complete(self) -> list[Path]:
        """The folders of checkpoints that took their names, in order of step."""
        named = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))

    def _check_fingerprint(self, path: Path, other: dict[str, Any]) -> None:
        mine = self.fingerprint
        changed = [
            f"{key} was {other.get(key)!r} and is {mine.get(key)!r}"
            for key in sorted(mine.keys() | other.keys())
            if mine.get(key) != other.get(key)
        ]
        if changed:
            raise ValueError(
                f"{path} belongs to another run: {'; '.join(changed)}. Set what it was to go on, "
                "or take a new output folder"
            )

    def _finish(self, writing: Future[Any], note: dict[str, Any]) -> None:
        """In the thread: wait for every process's part, then make it the newest checkpoint."""
        writing.result()
        if rank() != 0:
            return
        written, final = self._path(note["step"], ".tmp"), self._path(note["step"])
        files = _sums_of(written)
        with (written / MARK).open("w", encoding="utf-8") as mark:
            json.dump({**note, "files": files}, mark, indent=1)
            mark.flush()
            os.fsync(mark.fileno())
        _sync_folder(written)
        os.replace(written, final)
        _sync_folder(self.folder)
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)
        for old in self.folder.glob("step-*.damaged"):
            shutil.rmtree(old)

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.folder / f"step-{step:08d}{suffix}"


def _read_note(path: Path) -> dict[str, Any]:
    """`complete.json`, once all files are as it says.

    Raises:
        Damaged: where they are not.
    """
    if not (path / MARK).is_file():
        raise Damaged(f"it has no {MARK}")
    try:
        note = json.loads((path / MARK).read_bytes())
        files = note["files"].items()
    except (ValueError, KeyError, AttributeError, TypeError):
        raise Damaged(f"its {MARK} cannot be read") from None
    for name, (size, checksum) in files:
        file = path / name
        if not file.is_file():
            raise Damaged(f"{name} is missing")
        if file.stat().st_size != size:
            raise Damaged(f"{name} has {file.stat().st_size} bytes, not {size}")
        if _size_and_sum(file)[1] != checksum:
            raise Damaged(f"{name} has other content than was written")
    return note


def _sums_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and sum of every file."""
    return {path.name: _size_and_sum(path) for path in sorted(folder.iterdir())}


def _size_and_sum(path: Path) -> tuple[int, int]:
    """Bytes and CRC-32 of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return size, checksum


def _put_aside(path: Path, why: str) -> None:
    warnings.warn(f"the checkpoint {path} is damaged and left out: {why}", stacklevel=3)
    aside = path.with_name(path.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)


def _sync_folder(path: Path) -> None:
    """Write a folder's names through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
