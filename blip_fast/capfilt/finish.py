"""What is done once all shards are there: totals, the report, and copies in other shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from blip_fast.capfilt.copies import COCO, SIDECARS, write_coco, write_sidecars
from blip_fast.capfilt.ledger import NAMED, RUN, check_run
from blip_fast.capfilt.models import Models
from blip_fast.capfilt.options import CapFiltOptions
from blip_fast.capfilt.report import write_report
from blip_fast.capfilt.summary import TOTALS, CapFiltSummary, model_facts, totals
from blip_fast.data import default_batch_size, displayable, write_json
from blip_fast.data.web import WebSource, folders_of
from blip_fast.images import Status
from blip_fast.tasks.model import Blip

REPORT = "report.html"
FILES = (TOTALS, REPORT, COCO, SIDECARS)  # beside the shards, without those of the ledger

# What of a model decides what it says; where it lies, and on which device, does not.
_TELLING = ("sha256", "kind", "image_size", "dtype", "quantize", "compat", "decoder", "max_pixels")


def finish(
    output: Path,
    scratch: Path,
    source: WebSource,
    models: Models,
    failures: Sequence[tuple[str, Status, str]],
    done: int,
    undone: Mapping[str, str],
) -> CapFiltSummary:
    """Write what is missing beside the shards; the totals last.

    Args:
        scratch: a folder on the same disk for unfinished files.
        undone: shards that are left out, with the reason.
    """
    options = models.options
    fresh = done or not (output / TOTALS).exists()
    stats = totals_so_far(output, source, models, undone) if fresh else _read(output / TOTALS)
    if options.coco_json and (fresh or not (output / COCO).exists()):
        write_coco(output, scratch)
    if options.sidecars and (fresh or not (output / SIDECARS).exists()):
        write_sidecars(output, scratch)
    if fresh or not (output / REPORT).exists():
        write_report(output, totals=stats, scratch=scratch)
        write_json(output / TOTALS, stats, scratch)
    return CapFiltSummary(
        output, stats, list(failures), complete=not undone, done=done, undone=undone
    )


def totals_so_far(
    output: Path, source: WebSource, models: Models, undone: Mapping[str, str]
) -> dict[str, Any]:
    """The totals of the shards that are done."""
    settings = {"source": source_name(source), **models.options.to_dict()}
    for part in ("shard_index", "num_shards"):  # of the process that came last, not of the run
        settings.pop(part)
    roles = (("captioner", models.captioners), ("filter", models.filters))
    facts = {
        role if number == 0 else f"{role} {number + 1}": model_facts(model)
        for role, some in roles
        for number, model in enumerate(some)
    }
    return totals(output, settings, facts, undone)


def source_name(source: WebSource) -> str:
    """A source in words: the whole path where it is one."""
    path = Path(source.name)
    return displayable(path.resolve()) if path.exists() else source.name


def fingerprint_of(source: WebSource, models: Models, options: CapFiltOptions) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that began."""
    device = models.captioners[0].device.type
    return {
        **run_settings(source, options, device),
        "captioners": [_telling(model) for model in models.captioners],
        "filters": [_telling(model) for model in models.filters],
    }


def run_settings(
    source: WebSource, options: CapFiltOptions, device: str | None = None
) -> dict[str, Any]:
    """The part of the fingerprint that is known before a model is loaded.

    Args:
        device: the captioner's, which decides on the size of batches where no other is asked for.
    """
    settings = {**options.fingerprint(), "source": source.identity, "shards": len(source)}
    settings[NAMED] = source_name(source)
    if settings["batch_size"] is None:
        settings.pop("batch_size")
        if device is not None:
            settings["batch_size"] = default_batch_size(device)
    return settings


def refuse_own_source(output: Path, source: WebSource) -> None:
    """Raise a ValueError where a run would write among the files that it reads."""
    if output.resolve() in {folder.resolve() for folder in folders_of(source)}:
        raise ValueError(
            f"{displayable(output)} holds the source {source.name} itself; give another output "
            "folder"
        )


def refuse_other_run(output: Path, source: WebSource, options: CapFiltOptions) -> None:
    """Raise a ValueError where a folder belongs to another run, as far as that is known before a
    model is loaded; not where it may be replaced."""
    refuse_own_source(output, source)
    if not (options.overwrite and (output / RUN).exists()):
        check_run(output, run_settings(source, options))


def _telling(model: Blip) -> dict[str, Any]:
    options = model.image_options
    facts = {
        **model_facts(model), "decoder": options.decoder, "max_pixels": options.max_pixels,
    }  # fmt: skip
    told = {name: facts[name] for name in _TELLING}
    return {**told, "sha256": facts["sha256"] or _digest(model)}


def _digest(model: Blip) -> str:
    """Of the weights of a model that came from no file."""
    state = hashlib.blake2b(digest_size=32)
    for name, tensor in model.med.state_dict().items():
        state.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().flatten()
            state.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return state.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
