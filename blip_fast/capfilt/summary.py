"""The numbers of a CapFilt run: how many, how fast, what share of the texts was dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from blip_fast.capfilt.rows import SOURCES, Candidate, Row
from blip_fast.images import Status
from blip_fast.tasks.model import Blip


@dataclass(frozen=True)
class CapFiltSummary:
    """A finished run.

    Attributes:
        output: the folder with its files.
        stats: what `00000_stats.json` holds.
        failures: key, status and reason of each picture that could not be read.
    """

    output: Path
    stats: dict[str, Any]
    failures: list[tuple[str, Status, str]]

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


def summarise(
    rows: Sequence[Row],
    output: Path,
    settings: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    started: float,
    ended: float,
) -> CapFiltSummary:
    """Count; the names of the counts are img2dataset's where it has them."""
    failed = [row for row in rows if row.status is not Status.SUCCESS]
    duration = ended - started
    stats = {
        "count": len(rows),
        "successes": len(rows) - len(failed),
        "failures": len(failed),
        "status_dict": _statuses(row.status for row in rows),
        "texts": {source: _texts(rows, source) for source in SOURCES},
        "start_time": _utc(started),
        "end_time": _utc(ended),
        "duration": round(duration, 3),  # seconds, the models' loading left out
        "images_per_second": round(len(rows) / max(duration, 1e-3), 3),
        "models": {role: dict(facts) for role, facts in models.items()},
        "settings": dict(settings),
    }
    listed = [(row.key, row.status, row.error_message) for row in failed]
    return CapFiltSummary(output, stats, listed)


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


def _texts(rows: Sequence[Row], source: str) -> dict[str, Any]:
    candidates = [c for row in rows for c in row.candidates if c.source == source]
    kept = sum(candidate.kept for candidate in candidates)
    return {
        "count": len(candidates),
        "kept": kept,
        "dropped_share": _share_dropped(candidates, kept),
        "truncated": sum(candidate.truncated for candidate in candidates),
        "status_dict": _statuses(candidate.status for candidate in candidates),
    }


def _share_dropped(candidates: Sequence[Candidate], kept: int) -> float | None:
    """Texts not kept, whatever the reason, of all; None where there was no text at all."""
    return round(1 - kept / len(candidates), 4) if candidates else None


def _statuses(statuses: Iterable[Status]) -> dict[str, int]:
    counts = Counter(status.value for status in statuses)
    return dict(sorted(counts.items()))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
