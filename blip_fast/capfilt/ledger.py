"""A run's folder: which run it belongs to, which shards are done, and who works on which.

    run.json               what the run was asked for; a run that goes on must ask for the same
    00000_stats.json       the mark of a shard that is done, written last
    .work/<name>/          a process at work: its unfinished files, and `alive`, which it keeps
                           locked and touches every few seconds
    .work/claims/00000.1   who works on a shard: the first process, or the second where the first
                           has died; the highest number counts

Several processes, on one machine or on many that share the folder, take shards from each other's
reach by claims. What a shard becomes depends on its input and the run alone, so that even two
processes that took the same one would write the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blip_fast.capfilt.rows import committed
from blip_fast.data import displayable

RUN = "run.json"
NAMED = "source_name"  # told where the source is another one, and not compared
STALE = 120.0  # seconds without a sign of life after which another machine's process is dead
_BEAT = 10.0  # seconds between signs of life


class Ledger:
    """One process at work in a run's folder; a context manager."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        """
        Args:
            folder: made where it is not there.
            fingerprint: JSON values that decide what is written.

        Raises:
            ValueError: where the folder belongs to another run; every difference is named.
        """
        check_run(folder, fingerprint)
        self.folder = folder
        self._work = folder / ".work"
        self._claims = self._work / "claims"
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.scratch = self._work / self.name
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._mine: dict[str, Path] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Ledger:
        self._claims.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self.scratch.mkdir()
        self._alive = (self.scratch / "alive").open("w", encoding="utf-8")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._alive.write(json.dumps(_self()))
        self._alive.flush()
        _first_writes(self.scratch, self.folder / RUN, self._fingerprint)
        self._beat = threading.Thread(target=self._keep_alive, name="capfilt ledger", daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beat.join()
        for claim in self._mine.values():
            claim.unlink(missing_ok=True)
        self._alive.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        for folder in (self._claims, self._work):
            try:
                folder.rmdir()
            except OSError:  # others are at work
                break

    def take(self, shards: Iterable[int]) -> Iterator[str]:
        """The names of shards to work on, each claimed for this process when it is given."""
        done = set(committed(self.folder))
        for shard in shards:
            name = f"{shard:05d}"
            if name not in done and self._claim(name):
                if self.is_done(name):  # by another, since the list was made
                    self.drop(name)
                else:
                    yield name

    def holds(self, name: str) -> bool:
        """Whether a shard is still this process's own; not where it was thought dead."""
        claim = self._mine.get(name)
        return claim is not None and claim == self._claim_of(name)

    def drop(self, name: str) -> None:
        """Let go of a shard, done or not."""
        mine = self._mine.pop(name, None)
        if mine is not None:
            last = int(mine.suffix[1:])
            for number in range(1, last + 1):
                mine.with_suffix(f".{number}").unlink(missing_ok=True)

    def is_done(self, name: str) -> bool:
        return (self.folder / f"{name}_stats.json").exists()

    def held_by_others(self) -> dict[str, str]:
        """Shards that other living processes work on, and who they are."""
        held = {}
        for name in {path.stem for path in self._claims.iterdir()}:
            claim = self._claim_of(name)
            owner = _owner(claim)
            if claim is not None and owner != self.name and not self.is_done(name):
                if not owner or self._is_alive(owner):
                    held[name] = owner or "an unknown process"
        return held

    def _claim(self, name: str) -> bool:
        """Claim a shard that nobody alive holds; False where somebody does."""
        claim = self._claim_of(name)
        if claim is not None:
            owner = _owner(claim)
            fresh = not owner and _age(claim, self.scratch) < STALE  # its name is not written yet
            if fresh or (owner and self._is_alive(owner)):
                return False
        mine = self._claims / f"{name}.{int(claim.suffix[1:]) + 1 if claim else 1}"
        draft = self.scratch / f"claim-{name}"  # linked, so that no claim is ever without a name
        draft.write_text(self.name, encoding="utf-8")
        try:
            os.link(draft, mine)
        except FileExistsError:  # another was faster
            return False
        finally:
            draft.unlink()
        self._mine[name] = mine
        return True

    def _claim_of(self, name: str) -> Path | None:
        numbers = [int(p.suffix[1:]) for p in self._claims.glob(f"{name}.*")]
        return self._claims / f"{name}.{max(numbers)}" if numbers else None

    def _is_alive(self, owner: str) -> bool:
        return _is_alive(self._work / owner, self.scratch)

    def _sweep(self) -> None:
        """Remove what dead processes left unfinished."""
        for folder in self._work.iterdir():
            if folder != self._claims and not _is_alive(folder, self._claims):
                shutil.rmtree(folder, ignore_errors=True)
        for claim in self._claims.iterdir():  # of one killed between its mark and letting go
            if self.is_done(claim.stem):
                claim.unlink(missing_ok=True)

    def _keep_alive(self) -> None:
        while not self._ended.wait(_BEAT):
            try:
                os.utime(self.scratch / "alive")
            except OSError:  # the next sign may come through; without any, another takes over
                continue


def check_run(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """See whether a folder is free, or belongs to a run with this fingerprint.

    Args:
        fingerprint: what is not in it is not compared.

    Raises:
        ValueError: naming every difference.
    """
    try:
        theirs = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and committed(folder):
            raise ValueError(
                f"{displayable(folder)} holds shards but no {RUN}, so they are not of such a run; "
                "give another output folder"
            ) from None
        return
    except ValueError:
        raise ValueError(f"{displayable(folder / RUN)} is damaged; remove it") from None
    ours = json.loads(json.dumps(fingerprint))
    names = ours.keys() - {NAMED}
    changed = [
        f"{what} was {before!r} and is {now!r}"
        for name in sorted(names)
        for what, before, now in _changes(name, theirs.get(name), ours[name])
    ]
    if NAMED in ours and theirs.get("source") != ours.get("source"):
        changed.append(f"the source was called {theirs.get(NAMED)!r} and is {ours[NAMED]!r}")
    if changed:
        raise ValueError(
            f"{displayable(folder)} belongs to another run: {'; '.join(changed)}. Ask for what it "
            "was to go on, give another output folder, or --overwrite to replace it"
        )


def _changes(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """What differs, in its smallest parts: of a model its dtype, say."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, pair in enumerate(zip(before, now, strict=True)):
            yield from _changes(f"{name}[{place}]", *pair)
    elif isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _changes(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield name, before, now


def clear(folder: Path, names: Iterable[str]) -> None:
    """Remove a run from a folder, its marks first, and nothing that is not of a run.

    Args:
        names: of files and folders beside the shards.

    Raises:
        ValueError: where a process is at work in it, or it holds shards that are of no run.
    """
    if not folder.is_dir():
        return
    if not (folder / RUN).exists():
        check_run(folder, {})
    work = folder / ".work"
    for other in work.iterdir() if work.is_dir() else ():
        if other.name != "claims" and _is_alive(other, folder):
            raise ValueError(f"{displayable(folder)} is being written by {other.name}; stop it")
    for name in committed(folder):
        for end in ("_stats.json", ".tar", ".parquet"):
            (folder / f"{name}{end}").unlink(missing_ok=True)
    for path in (folder / name for name in (RUN, *names)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _self() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid()}


def _host() -> str:
    """What tells one running system from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _is_alive(process: Path, near: Path) -> bool:
    """Whether a process still works. On this machine its lock tells; of another, its last sign.

    Args:
        near: a folder to be written to beside it, whose clock is the other's, too.
    """
    alive = process / "alive"
    try:
        with alive.open(encoding="utf-8") as file:
            if _age(alive, near) > STALE:
                return False
            try:
                host = json.load(file)["host"]
            except (ValueError, KeyError):  # just being written
                return True
            if host != _host():
                return True
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False
    except FileNotFoundError:
        return False


def _age(path: Path, near: Path) -> float:
    """Seconds since a file was touched, by the clock of the disk it lies on."""
    probe = near / f".now-{secrets.token_hex(4)}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _owner(claim: Path | None) -> str:
    try:
        return claim.read_text(encoding="utf-8") if claim is not None else ""
    except FileNotFoundError:
        return ""


def _first_writes(scratch: Path, target: Path, value: Any) -> None:
    """Write a file that is whole or absent, and that only the first of several writes.

    Raises:
        ValueError: where another wrote something else.
    """
    draft = scratch / target.name
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    try:
        os.link(draft, target)
    except FileExistsError:
        check_run(target.parent, value)
    finally:
        draft.unlink()
