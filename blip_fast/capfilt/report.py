"""The page that shows a CapFilt run: one HTML file that asks no other machine for anything.

Everything in it comes from the run's folder, so that it can be written again at any time. Texts
reach the page as escaped HTML, or as JSON that its script puts into text nodes; the page's policy
lets no other script run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from blip_fast.capfilt.columns import FLAGS, read_texts
from blip_fast.capfilt.count import GRID, Totals, count_texts
from blip_fast.capfilt.facts import Facts, facts_of, read_facts
from blip_fast.capfilt.gallery import Extremes, cards, choose
from blip_fast.capfilt.labels import Judged, Labels, judge
from blip_fast.capfilt.plots import HEIGHT, WIDTH, histograms, lines
from blip_fast.capfilt.rows import SOURCES, committed
from blip_fast.capfilt.tune import Quality, make_curve, qualities, require_run
from blip_fast.capfilt.write import gallery_places
from blip_fast.data.files import displayable, replacing
from blip_fast.data.pages import inline_json, page_script, page_template
from blip_fast.images import Status

_MOST_SHARDS = 1000  # that are read; of more, an even spread
_REASONS = 200  # different ones that the page lists
_REASON_SHOWN = 300  # characters
_EXAMPLES = 3  # keys of each
_QUOTED, _NUMBER = re.compile(r"b?'[^']*'|b?\"[^\"]*\""), re.compile(r"\d+")


@dataclass(frozen=True)
class Failure:
    """Pictures or texts that came to nothing for one reason."""

    status: str
    reason: str
    count: int
    examples: list[str]


@dataclass(frozen=True)
class Told:
    """The texts of one source in numbers.

    Attributes:
        failed: those whose status is not success.
        flags: texts by flag.
    """

    count: int
    kept: int
    failed: int
    flags: Mapping[str, int]

    @property
    def dropped(self) -> float | None:
        """The share of texts not kept, whatever the reason; None where there are none."""
        return 1 - self.kept / self.count if self.count else None


def write_report(
    folder: Path,
    labels: Labels | None = None,
    totals: Mapping[str, Any] | None = None,
    scratch: Path | None = None,
) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        labels: what is known of some of its texts; adds precision and recall.
        totals: what `summary.totals` gives, where it is not written yet.
        scratch: see `replacing`.

    Raises:
        ValueError: where the folder holds no finished shard, or no label is of one of its texts.
    """
    page = render_report(folder, labels, totals)
    with replacing(folder / "report.html", durable=False, scratch=scratch) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "report.html"


def render_report(
    folder: Path, labels: Labels | None = None, totals: Mapping[str, Any] | None = None
) -> str:
    """The page as text; see `write_report`. Neither memory nor the page grow with the run."""
    require_run(folder)
    facts = read_facts(folder) if totals is None else facts_of(totals)
    names = committed(folder)
    shards = _sample(names, facts)
    extremes = Extremes()
    texts = extremes.watch(read_texts(folder, shards, facts.without))
    rows, counted = count_texts(texts, facts.itc_threshold)
    judged = None if labels is None else judge(folder, labels, facts.without)
    curve = make_curve(rows, counted, judged, facts.itc_threshold)
    statuses, failures = _failures(folder, shards, counted)
    statuses = Counter(facts.statuses) if facts.statuses else statuses
    places = choose(folder, shards, rows, extremes.rows)
    shown = list(cards(folder, shards, places, labels))
    drawn = lines(curve)
    values = {
        "rows": shown,
        "threshold": facts.threshold,
        "grid": GRID.tolist(),
        "lines": {line.kind: line.values for line in drawn},
    }
    return page_template(Path(__file__).with_name("report.html.j2")).render(
        facts=facts,
        name=facts.settings.get("source") or displayable(folder.resolve().name),
        rows=statuses.total(),
        read=statuses[Status.SUCCESS.value],
        told={source: _told(source, facts, counted) for source in SOURCES},
        sample=(len(shards), len(names)),
        histograms=histograms(counted, {"itm": facts.threshold, "itc": facts.itc_threshold}),
        plot=(WIDTH, HEIGHT),
        labelled=curve.labelled,
        lines=drawn,
        labels=labels,
        quality=None if judged is None else _quality(judged, facts),
        failures=failures,
        shown=len(shown),
        percent=_percent,
        shorten=_shorten,
        script=page_script(Path(__file__).with_name("gallery.js.j2")),
        values=inline_json(values),
    )


def _sample(names: Sequence[str], facts: Facts) -> Sequence[str]:
    """The shards whose rows are read: of very many, an even spread and those with pictures."""
    if len(names) <= _MOST_SHARDS or not facts.texts:
        return names
    gallery = int(facts.settings.get("gallery") or 0)
    spread = {names[i * len(names) // _MOST_SHARDS] for i in range(_MOST_SHARDS)}
    return [
        name
        for place, name in enumerate(names)
        if name in spread or gallery_places(place, len(names), 1, gallery)
    ]


def _told(source: str, facts: Facts, counted: Mapping[str, Totals]) -> Told:
    """Of all shards where the run has added them up, else of those that were read."""
    own = facts.texts.get(source)
    if own is None:
        seen = counted[source]
        failed = seen.count - seen.statuses[Status.SUCCESS.value]
        return Told(seen.count, seen.kept, failed, seen.flags)
    failed = own["count"] - own["status_dict"].get(Status.SUCCESS.value, 0)
    return Told(own["count"], own["kept"], failed, {flag: own[flag] for flag in FLAGS})


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _shorten(text: str) -> str:
    return text if len(text) <= _REASON_SHOWN else text[:_REASON_SHOWN] + " …"


def _quality(judged: Judged, facts: Facts) -> Quality:
    """That of the run's own thresholds."""
    return qualities(judged, [facts.threshold], facts.itc_threshold)[0]


def _failures(
    folder: Path, shards: Sequence[str], totals: Mapping[str, Totals]
) -> tuple[Counter[str], list[Failure]]:
    """Pictures by status, and all failures by reason, the commonest first."""
    statuses: Counter[str] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for row in _failed_rows(folder, shards, statuses):
        name = (row["status"], _reason(row["error_message"] or ""))
        if name not in counts and len(counts) >= _REASONS:
            name = (row["status"], "other reasons; see the tables")
        counts[name] += 1
        keys = examples.setdefault(name, [])
        if len(keys) < _EXAMPLES:
            keys.append(row["key"])
    found = [Failure(*name, count, examples[name]) for name, count in counts.most_common()]
    for source in SOURCES:
        for status, count in totals[source].statuses.most_common():
            if status != Status.SUCCESS.value:
                found.append(Failure(status, _WHY[status].format(source=source), count, []))
    return statuses, found


_WHY = {
    status.value: "a {source} text cannot be read"
    for status in Status
    if status is not Status.SUCCESS
} | {
    Status.EMPTY_TEXT.value: "the {source} text is empty",
    Status.FAILED_SCORE.value: "the {source} text has no score, or none that is a number",
}


def _failed_rows(
    folder: Path, shards: Sequence[str], statuses: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of pictures that failed; all statuses are counted in passing."""
    for name in shards:
        with pq.ParquetFile(folder / f"{name}.parquet") as table:
            columns = ["key", "status", "error_message"]
            for batch in table.iter_batches(8192, columns=columns, use_threads=False):
                status = batch.column("status")
                counted = pc.value_counts(status).to_pylist()
                statuses.update({value["values"]: value["counts"] for value in counted})
                yield from batch.filter(pc.not_equal(status, "success")).to_pylist()


def _reason(message: str) -> str:
    """A message without the numbers and names that make it one picture's own."""
    words = _NUMBER.sub("#", _QUOTED.sub("…", message)).split()
    return " ".join(words) or "no reason given"
