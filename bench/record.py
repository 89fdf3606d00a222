"""Rows of measurements: what was run where, and the numbers; to a file for each kind of machine."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.harness import Case, Timing, rate
from bench.machine import git_sha, machine_kind, model_name
from blip_fast.kernels import _ops

Row = tuple[Case, dict[str, Timing]]


@dataclass(frozen=True)
class Setup:
    """What all rows of one command share."""

    room: str
    kind: str
    facts: dict[str, str | int]

    @classmethod
    def of(cls, room: str, options: argparse.Namespace) -> Setup:
        """Ask the machine, the checkout and torch; the number of threads is set already."""
        device, threads = torch.device(options.device), torch.get_num_threads()
        cold = options.cold or device.type != "cpu"
        command = f"blip-fast bench {room} --seconds {options.seconds:g} --threads {threads}"
        command += f" --device {device}" * (device.type != "cpu") + " --cold" * options.cold
        facts: dict[str, str | int] = {
            "git sha": git_sha(),
            "command": command,
            "machine": model_name(device),
            "isa": torch.ops.blip_fast.cpu_isa() if _ops.NATIVE_LOADED else "not built",
            "threads": threads,
            "cache": "cold" if cold else "warm",
            "torch": torch.__version__,
        }
        return cls(room, machine_kind(device), facts)

    @property
    def heading(self) -> str:
        """One line above a table."""
        facts = self.facts
        return (
            f"{self.kind} ({facts['machine']}), compiled rooms: {facts['isa']}, "
            f"{facts['threads']} threads, {facts['cache']} cache, torch {facts['torch']}, "
            f"commit {facts['git sha'] or 'unknown'}"
        )

    def rows(self, case: Case, timings: dict[str, Timing]) -> Iterator[dict[str, Any]]:
        """A row for each contender."""
        ours = next(iter(timings.values())).median
        for name, t in timings.items():
            yield {
                **self.facts,
                "case": case.name,
                "contender": name,
                "median ms": round(t.median * 1e3, 5),
                "20% ms": round(t.low * 1e3, 5),
                "80% ms": round(t.high * 1e3, 5),
                "turns": len(t.turns),
                "rate": rate(case, t),
                "ratio": round(t.median / ours, 3),
            }

    def print_json(self, case: Case, timings: dict[str, Timing]) -> None:
        for row in self.rows(case, timings):
            print(json.dumps({"room": self.room, "kind": self.kind, **row}), flush=True)

    def saved(self, results: Iterable[Row], folder: Path) -> Iterator[Row]:
        """Append each case's rows to this room's file of today as it passes."""
        path = folder / f"{self.room}_{self.kind}_{date.today():%Y-%m-%d}.csv"
        for case, timings in results:
            rows = list(self.rows(case, timings))
            folder.mkdir(exist_ok=True)
            fresh = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                if fresh:
                    writer.writeheader()
                writer.writerows(rows)
            yield case, timings
        print(f"appended to {path}", file=sys.stderr)
