"""CapFilt: write captions for web pictures, then keep the texts that match (BLIP, section 3.3)."""

from __future__ import annotations

from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.pipeline import run_capfilt
from blip_fast.capfilt.rows import SCHEMA, Candidate, Row
from blip_fast.capfilt.summary import CapFiltSummary

__all__ = ["SCHEMA", "Candidate", "CapFiltOptions", "CapFiltSummary", "Row", "run_capfilt"]
