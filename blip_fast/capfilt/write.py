"""The files of a CapFilt run.

00000.parquet      one row for every picture attempted; see `rows.SCHEMA`
kept.json          the kept pairs, in the shape of BLIP's training manifests
report.html        for people
00000_stats.json   counts, settings, models; written last: a folder that has it is finished
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blip_fast.capfilt.report import render_report
from blip_fast.capfilt.rows import SCHEMA, Row, kept_pairs
from blip_fast.capfilt.summary import CapFiltSummary
from blip_fast.data import displayable, replacing, write_json
from blip_fast.data.table import write_table
from blip_fast.images import ImageOptions

STATS = "00000_stats.json"


def prepare_folder(output: Path, overwrite: bool) -> None:
    """Make the output folder; with `overwrite`, take the mark of a finished run out of it.

    Raises:
        ValueError: where it holds a finished run and `overwrite` is not set.
    """
    refuse_finished(output, overwrite)
    output.mkdir(parents=True, exist_ok=True)
    (output / STATS).unlink(missing_ok=True)


def refuse_finished(output: Path, overwrite: bool) -> None:
    """Raise a ValueError where the folder holds a finished run, unless it may be replaced."""
    if not overwrite and (output / STATS).exists():
        raise ValueError(
            f"{displayable(output)} holds a finished run ({STATS}); give another output folder, "
            "or --overwrite to replace it"
        )


def write_run(rows: Sequence[Row], summary: CapFiltSummary, image_options: ImageOptions) -> None:
    """Write all files into the summary's folder.

    Args:
        image_options: how the run read its pictures; the report reads its thumbnails so.
    """
    output = summary.output
    write_table(output / "00000.parquet", [row.to_dict() for row in rows], SCHEMA)
    write_json(output / "kept.json", kept_pairs(rows))
    page = render_report(rows, summary.stats, image_options)
    with replacing(output / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json(output / STATS, summary.stats)
