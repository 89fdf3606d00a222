"""What jobs read and write: folders of pictures, texts beside them, and tables of results."""

from __future__ import annotations

from blip_fast.data.batches import Batch, chunks, default_batch_size, read_batches, stable_seed
from blip_fast.data.files import displayable, replacing, write_json
from blip_fast.data.folder import Found, find, is_url
from blip_fast.data.open import open_in_turns, open_source
from blip_fast.data.samples import BadSample, Sample, Shard, Source
from blip_fast.data.sidecar import (
    EXISTING,
    EXTENSIONS,
    Existing,
    combine,
    find_sidecar,
    read_sidecar,
    refuse_clashes,
    write_sidecar,
)

__all__ = [
    "EXISTING",
    "EXTENSIONS",
    "BadSample",
    "Batch",
    "Existing",
    "Found",
    "Sample",
    "Shard",
    "Source",
    "chunks",
    "combine",
    "default_batch_size",
    "displayable",
    "find",
    "find_sidecar",
    "is_url",
    "open_in_turns",
    "open_source",
    "read_batches",
    "read_sidecar",
    "refuse_clashes",
    "replacing",
    "stable_seed",
    "write_json",
    "write_sidecar",
]
