"""Folders as CapFilt leaves them, made of rows, for what is done with a run afterwards."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from blip_fast.capfilt.flow import Clock
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.rows import MARK, SCHEMA, Candidate, Row, Scores
from blip_fast.capfilt.summary import TOTALS, ShardStats, totals
from blip_fast.data.table import write_table
from blip_fast.images import Status

MODEL = {"source": "stub", "sha256": "0" * 64, "kind": "pretrain", "trained": True}


def text(source: Any, words: str, itm: float, itc: float = 0.25, **more: Any) -> Candidate:
    """A scored text, kept from 0.5 on."""
    candidate = Candidate(
        source,
        words,
        captioner=0 if source == "synthetic" else None,
        log_probability=-2.0 if source == "synthetic" else None,
        itm_probability=itm,
        itm_logit=0.0,
        itc_similarity=itc,
        filters=(Scores(itm, 0.0, itc),),
        **more,
    )
    kept = itm >= 0.5 and not candidate.duplicate
    return Candidate(**{**vars(candidate), "kept": kept})


def picture(number: int, *texts: Candidate, **more: Any) -> Row:
    """A picture that was read."""
    values = {"width": 640, "height": 480, "number": number, **more}
    return Row(f"{number:09d}", f"/data/{number}.jpg", Status.SUCCESS, candidates=texts, **values)


def thumbnail(
    color: tuple[int, int, int] = (40, 90, 160), size: tuple[int, int] = (64, 48)
) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG")
    return file.getvalue()


def write_shards(
    folder: Path, shards: Sequence[Sequence[Row]], source: str = "/data", **settings: Any
) -> Path:
    """Write a complete run: a shard for each list of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        name = f"{number:05d}"
        write_table(folder / f"{name}.parquet", [row.to_dict() for row in rows], SCHEMA)
        stats = ShardStats([], 0)
        stats.add(rows)
        clocks = [Clock(stage, stage, len(rows), 0.5, 0.1, 0.2) for stage in ("read", "write")]
        mark = stats.to_dict(0.0, clocks, {})
        (folder / f"{name}{MARK}").write_text(json.dumps(mark), encoding="utf-8")
    asked = {"source": source, **CapFiltOptions(**settings).to_dict()}
    told = totals(folder, asked, {"captioner": MODEL, "filter": MODEL})
    (folder / TOTALS).write_text(json.dumps(told), encoding="utf-8")
    return folder
