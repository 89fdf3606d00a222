"""The count of a command: what worked, what failed and why, how fast, and the exit code."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence

from blip_fast.cli.common import print_json
from blip_fast.images import Picture, Status

_LISTED = 10


class Tally:
    """Counts the pictures of a command while it runs.

    `json`: failures are also printed to standard output, as objects among the results.
    """

    def __init__(self, json: bool = False) -> None:
        self.done = 0
        self.skipped = 0
        self.failures: list[tuple[str, Status, str]] = []
        self._json = json
        self._started = time.perf_counter()

    def start(self) -> None:
        """Count time from here: loading a model is not a picture's time."""
        self._started = time.perf_counter()

    def fail(self, name: str, status: Status, error: str) -> None:
        self.failures.append((name, status, error))
        if self._json:
            print_json({"path": name, "error": error, "status": status.value})

    def fail_picture(self, name: str, picture: Picture) -> None:
        self.fail(name, picture.status, picture.error)

    @property
    def exit_code(self) -> int:
        """0 where something worked, or where all there was to do had been done before."""
        return 0 if self.done or (self.skipped and not self.failures) else 1

    def report(self, verb: str) -> int:
        """Print the summary to standard error.

        Args:
            verb: in the past tense, as "captioned".

        Returns:
            the exit code.
        """
        seconds = max(time.perf_counter() - self._started, 1e-6)
        attempted = self.done + len(self.failures)
        parts = [f"{self.done} of {attempted + self.skipped} pictures {verb}"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        if self.failures:
            parts.append(f"{len(self.failures)} failed ({count_statuses(self.failures)})")
        parts.append(f"{attempted / seconds:.1f} images/s")
        print(", ".join(parts), file=sys.stderr)
        list_failures(self.failures)
        return self.exit_code


def count_statuses(failures: list[tuple[str, Status, str]]) -> str:
    counts = Counter(status.value for _, status, _ in failures)
    return ", ".join(f"{status} {number}" for status, number in sorted(counts.items()))


def list_failures(failures: list[tuple[str, Status, str]]) -> None:
    """The first failures on standard error, then the number of the others."""
    list_some([f"{name}: {status.value}: {error}" for name, status, error in failures])


def list_some(lines: Sequence[str], number: int | None = None) -> None:
    """The first lines on standard error, then how many more there are.

    Args:
        number: of all, where `lines` are the first of them only.
    """
    number = len(lines) if number is None else number
    for line in lines[:_LISTED]:
        print(f"  {line}", file=sys.stderr)
    if number > _LISTED:
        print(f"  and {number - _LISTED} more", file=sys.stderr)
