"""The numbers of a CapFilt run: how many, how fast, what share of the texts was dropped.

Each shard has its own in `00000_stats.json`, in the shape of img2dataset's, with more fields:
`count` pictures attempted, `successes` samples in the tar, `status_dict`. `totals.json` adds them
up; there `successes` are the pictures that were read, and `pairs` what is in the tars.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from blip_fast.capfilt.flow import Clock, slowest
from blip_fast.capfilt.rows import MARK, SOURCES, Candidate, Row, committed
from blip_fast.images import Status
from blip_fast.tasks.model import Blip

TOTALS = "totals.json"
_FLAGS = ("truncated", "degenerate", "duplicate")
_LISTED = 100  # losses of a shard, or of a run, that are told one by one
_TIMES = ("busy", "waited", "blocked")


@dataclass(frozen=True)
class CapFiltSummary:
    """A run, as far as it has come.

    Attributes:
        output: the folder with its files.
        stats: what `totals.json` holds; of the shards that are done.
        failures: key, status and reason of pictures that could not be read, the first of those
            of this process.
        complete: whether all shards are done.
        held: shards that other processes work on, and which.
        done: how many shards this process did.
        undone: shards that this process left undone, with the reason. The report is of the others.
    """

    output: Path
    stats: dict[str, Any]
    failures: list[tuple[str, Status, str]]
    complete: bool = True
    held: Mapping[str, str] = field(default_factory=dict)
    done: int = 0
    undone: Mapping[str, str] = field(default_factory=dict)

    @property
    def report(self) -> Path:
        """The absolute path of report.html."""
        return (self.output / "report.html").absolute()

    @property
    def count(self) -> int:
        return self.stats["count"]

    @property
    def successes(self) -> int:
        return self.stats["successes"]


class ShardStats:
    """The numbers of one shard, while it is being written."""

    def __init__(self, losses: Sequence[Mapping[str, Any]], lost: int) -> None:
        self._statuses: Counter[str] = Counter()
        self._texts = {source: _no_texts() for source in SOURCES}
        self._losses, self._lost = [dict(loss) for loss in losses], lost

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._statuses[row.status.value] += 1
            for candidate in row.candidates:
                _count(self._texts[candidate.source], candidate)

    @property
    def count(self) -> int:
        return sum(self._statuses.values())

    @property
    def unread(self) -> int:
        return self._statuses[Status.FAILED_TO_READ.value]

    def to_dict(
        self, started: float, stages: Sequence[Clock], before: Mapping[str, Clock]
    ) -> dict[str, Any]:
        """
        Args:
            started: when the process began with it, or ended the shard before.
            stages, before: the clocks now and then.
        """
        ended = time.time()
        statuses = dict(sorted(self._statuses.items()))
        count, unread = self.count, self.unread
        return {
            "count": count,
            "successes": sum(texts["kept"] for texts in self._texts.values()),
            "failed_to_download": unread,
            "failed_to_resize": count - unread - statuses.get("success", 0),
            "status_dict": statuses,
            "texts": {source: _with_share(texts) for source, texts in self._texts.items()},
            "lost": self._lost,
            "damages": len(self._losses),
            "losses": self._losses[:_LISTED],
            "duration": round(ended - started, 3),
            "start_time": started,
            "end_time": ended,
            "stages": {clock.name: _since(clock, before.get(clock.name)) for clock in stages},
        }


def totals(
    output: Path,
    settings: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    undone: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Add up the shards that are done.

    Args:
        undone: those that are left undone, with the reason; damages of the source, too.
    """
    sums: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    texts = {source: _no_texts() for source in SOURCES}
    clocks: dict[str, Clock] = {}
    missing = [
        {"shard": name, "offset": None, "what": f"is left undone: {why}"}
        for name, why in sorted((undone or {}).items())
    ]
    losses: list[dict[str, Any]] = missing[:_LISTED]
    started, ended = [], []
    names = committed(output)
    for name in names:
        stats = json.loads((output / f"{name}{MARK}").read_text(encoding="utf-8"))
        statuses.update(stats["status_dict"])
        for key in ("count", "lost", "damages"):
            sums[key] += stats[key]
        sums["pairs"] += stats["successes"]
        sums["milliseconds"] += round(1000 * stats["duration"])
        for source, own in stats["texts"].items():
            _merge(texts[source], own)
        for stage, own in stats["stages"].items():
            _add(clocks.setdefault(stage, Clock(stage, own["lane"])), own)
        losses += [{"shard": name, **x} for x in stats["losses"][: _LISTED - len(losses)]]
        started.append(stats["start_time"])
        ended.append(stats["end_time"])
    read, duration = statuses.get("success", 0), sums["milliseconds"] / 1000
    return {
        "count": sums["count"],
        "successes": read,
        "failures": sums["count"] - read,
        "pairs": sums["pairs"],
        "shards": len(names),
        "status_dict": dict(sorted(statuses.items())),
        "texts": {source: _with_share(own) for source, own in texts.items()},
        "lost": sums["lost"],
        "damages": sums["damages"] + len(missing),
        "losses": losses,
        "start_time": _utc(min(started, default=0.0)),
        "end_time": _utc(max(ended, default=0.0)),
        "duration": duration,  # seconds of all processes, the models' loading left out
        "images_per_second": round(sums["count"] / max(duration, 1e-3), 3),
        "stages": {name: _told(clock) for name, clock in clocks.items()},
        "slowest": slowest(list(clocks.values())) if clocks else None,
        "models": {role: dict(facts) for role, facts in models.items()},
        "settings": dict(settings),
    }


def model_facts(model: Blip) -> dict[str, Any]:
    """What is needed to run the same model again."""
    return {
        "source": str(model.source),
        "sha256": model.sha256,
        "kind": model.config.kind,
        "trained": model.trained,
        "image_size": model.image_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantize": model.quantize,
        "device": str(model.device),
        "compat": model.config.compat,
    }


def snapshot(clocks: Sequence[Clock]) -> dict[str, Clock]:
    return {clock.name: Clock(**vars(clock)) for clock in clocks}


def _no_texts() -> dict[str, Any]:
    return {"count": 0, "kept": 0, **dict.fromkeys(_FLAGS, 0), "status_dict": {}}


def _count(texts: dict[str, Any], candidate: Candidate) -> None:
    texts["count"] += 1
    texts["kept"] += candidate.kept
    for flag in _FLAGS:
        texts[flag] += getattr(candidate, flag)
    statuses, status = texts["status_dict"], candidate.status.value
    statuses[status] = statuses.get(status, 0) + 1


def _merge(texts: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key in ("count", "kept", *_FLAGS):
        texts[key] += other[key]
    for status, number in other["status_dict"].items():
        texts["status_dict"][status] = texts["status_dict"].get(status, 0) + number


def _with_share(texts: Mapping[str, Any]) -> dict[str, Any]:
    """With the paper's number: texts not kept, whatever the reason, of all; None of none."""
    count, kept = texts["count"], texts["kept"]
    share = round(1 - kept / count, 4) if count else None
    return {
        **texts,
        "dropped_share": share,
        "status_dict": dict(sorted(texts["status_dict"].items())),
    }


def _since(clock: Clock, before: Clock | None) -> dict[str, Any]:
    """What a clock has gone forward."""
    then = before or Clock(clock.name, clock.lane)
    times = {name: round(getattr(clock, name) - getattr(then, name), 4) for name in _TIMES}
    return {"lane": clock.lane, "images": clock.images - then.images, **times}


def _add(clock: Clock, own: Mapping[str, Any]) -> None:
    clock.images += own["images"]
    for name in _TIMES:
        setattr(clock, name, getattr(clock, name) + own[name])


def _told(clock: Clock) -> dict[str, Any]:
    """A stage's numbers, with the rate at which it would go alone."""
    times = {name: round(getattr(clock, name), 3) for name in _TIMES}
    rate = round(clock.images / clock.busy, 2) if clock.busy else None
    return {"lane": clock.lane, "images": clock.images, **times, "images_per_second": rate}


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
