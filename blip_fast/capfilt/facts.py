"""What a run says of itself beside its tables: settings, models, and how long each stage took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip_fast.capfilt.decide import Flag
from blip_fast.capfilt.summary import TOTALS

_THRESHOLD = 0.5  # the paper's, where the totals name none


@dataclass
class StageTime:
    """One stage of the pipeline, in seconds over all shards.

    Attributes:
        busy, waited, blocked: at work, without work, and until the next stage took its work.
        rate: images/s at work, what it would do if nothing held it up; None where it did nothing.
    """

    name: str
    busy: float
    waited: float
    blocked: float
    rate: float | None


@dataclass
class Facts:
    """A run as its totals describe it; what they lack is empty.

    Attributes:
        models: facts of each captioner and filter, by role.
        texts: the counts of each source, as `summary.totals` has them.
        statuses: pictures by status.
        seconds: of all processes.
        slowest: the stage that holds the others up.
        damages: shard and what is wrong with it, of sources that are damaged.
        lost: samples that the source should have and has not.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    count: int | None = None
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    ended: str = ""
    stages: list[StageTime] = field(default_factory=list)
    slowest: str = ""
    damages: list[tuple[str, str]] = field(default_factory=list)
    lost: int = 0

    @property
    def threshold(self) -> float:
        value = self.settings.get("threshold")
        return float(value) if isinstance(value, (int, float)) else _THRESHOLD

    @property
    def itc_threshold(self) -> float | None:
        value = self.settings.get("itc_threshold")
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def without(self) -> tuple[Flag, ...]:
        """Flags of texts that the run never kept; a run from before there were any has none."""
        return tuple(self.settings.get("without") or ())

    @property
    def untrained(self) -> list[str]:
        """Models whose weights are random."""
        models = self.models.values()
        return sorted({str(m.get("source")) for m in models if m.get("trained") is False})

    @property
    def longest(self) -> float:
        """Seconds of the stage with the longest bar; never zero."""
        return max([1e-9, *(stage.busy + stage.blocked for stage in self.stages)])


def read_facts(folder: Path) -> Facts:
    """What a run's totals say; nothing where it has none yet, or where they are damaged: its
    tables can be read all the same."""
    try:
        value = json.loads((folder / TOTALS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Facts()
    return facts_of(value) if isinstance(value, dict) else Facts()


def facts_of(totals: Mapping[str, Any]) -> Facts:
    """The facts of what `summary.totals` gives."""
    return Facts(
        settings=dict(totals["settings"]),
        models={role: dict(facts) for role, facts in totals["models"].items()},
        count=totals["count"],
        texts=dict(totals["texts"]),
        statuses=dict(totals["status_dict"]),
        seconds=totals["duration"],
        ended=totals["end_time"],
        stages=[_stage(name, own) for name, own in totals["stages"].items()],
        slowest=totals["slowest"] or "",
        damages=[(loss["shard"], place_of(loss)) for loss in totals["losses"]],
        lost=totals["lost"],
    )


def place_of(loss: Mapping[str, Any]) -> str:
    """What is wrong with a shard, and at which byte where it is not all of it."""
    return loss["what"] if loss["offset"] is None else f"at byte {loss['offset']}: {loss['what']}"


def _stage(name: str, own: Mapping[str, Any]) -> StageTime:
    return StageTime(name, own["busy"], own["waited"], own["blocked"], own["images_per_second"])
