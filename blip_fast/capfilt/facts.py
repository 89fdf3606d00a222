"""What the marks of a run's shards say of it: settings, models, and how long each stage took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip_fast.capfilt.rows import MARK, committed

_THRESHOLD = 0.5  # the paper's, where no mark names one


@dataclass
class StageTime:
    """One stage of the pipeline, in seconds over all shards.

    Attributes:
        images: that passed it; 0 where that was not recorded.
        busy, waited, blocked: at work, without work, and until the next stage took its work.
    """

    name: str
    images: int = 0
    busy: float = 0.0
    waited: float = 0.0
    blocked: float = 0.0

    @property
    def rate(self) -> float | None:
        """Images for each second at work: what it could do if nothing held it up."""
        return self.images / self.busy if self.busy > 0 and self.images else None


@dataclass
class Facts:
    """A run as its marks describe it.

    Attributes:
        settings: of the first shard; others of one run have the same.
        models: role and facts of each captioner and filter.
        seconds: of all shards together.
        started, ended: as they were written; empty where they were not.
        damages: shard and what is wrong with it, of sources that are damaged.
    """

    shards: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    models: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seconds: float = 0.0
    started: str = ""
    ended: str = ""
    stages: list[StageTime] = field(default_factory=list)
    damages: list[tuple[str, str]] = field(default_factory=list)

    @property
    def threshold(self) -> float:
        value = self.settings.get("threshold")
        return float(value) if isinstance(value, (int, float)) else _THRESHOLD

    @property
    def itc_threshold(self) -> float | None:
        value = self.settings.get("itc_threshold")
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def untrained(self) -> list[str]:
        """Models whose weights are random."""
        return sorted({str(m.get("source")) for _, m in self.models if m.get("trained") is False})

    @property
    def slowest(self) -> StageTime | None:
        """The stage that worked longest, which the others wait for."""
        return max(self.stages, key=lambda stage: stage.busy, default=None)

    @property
    def longest(self) -> float:
        """Seconds of the stage with the longest bar; never zero."""
        return max([1e-9, *(stage.busy + stage.blocked for stage in self.stages)])


def read_facts(folder: Path) -> Facts:
    """What the marks of a run's complete shards say; damaged ones are passed over, as a report
    must not fail over a number that it does not need."""
    facts = Facts()
    stages: dict[str, StageTime] = {}
    for name in committed(folder):
        facts.shards += 1
        stats = read_object(folder / f"{name}{MARK}")
        facts.settings = facts.settings or dict(stats.get("settings") or {})
        facts.models = facts.models or _models(stats.get("models") or {})
        facts.seconds += _number(stats.get("duration"))
        facts.started = facts.started or str(stats.get("start_time") or "")
        facts.ended = max(facts.ended, str(stats.get("end_time") or ""))
        for stage in stats.get("stages") or ():
            _add(stages.setdefault(str(stage.get("name")), StageTime(str(stage.get("name")))), stage)
        for loss in stats.get("losses") or ():
            facts.damages.append((name, f"at byte {loss.get('offset')}: {loss.get('what')}"))
    facts.stages = list(stages.values())
    return facts


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _models(models: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Role and facts: a role has one model or a list of them."""
    found = []
    for role, of in models.items():
        several: Sequence[Any] = of if isinstance(of, list) else [of]
        for number, facts in enumerate(several):
            name = role.removesuffix("s") + (f" {number}" if len(several) > 1 else "")
            found.append((name, dict(facts)))
    return found


def _add(total: StageTime, stage: Mapping[str, Any]) -> None:
    total.images += int(_number(stage.get("images")))
    total.busy += _number(stage.get("busy"))
    total.waited += _number(stage.get("waited"))
    total.blocked += _number(stage.get("blocked"))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
