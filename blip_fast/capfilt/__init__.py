"""CapFilt: write captions for web pictures, then keep the texts that match (BLIP, section 3.3)."""

from __future__ import annotations

from blip_fast.capfilt.cluster import CapFilter
from blip_fast.capfilt.finish import refuse_other_run
from blip_fast.capfilt.flow import StageFailed
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.pipeline import run_capfilt
from blip_fast.capfilt.ray_run import run_on_ray
from blip_fast.capfilt.rows import SCHEMA, Candidate, Row, read_rows
from blip_fast.capfilt.summary import CapFiltSummary

__all__ = [
    "SCHEMA",
    "Candidate",
    "CapFilter",
    "CapFiltOptions",
    "CapFiltSummary",
    "Row",
    "StageFailed",
    "read_rows",
    "refuse_other_run",
    "run_capfilt",
    "run_on_ray",
]
