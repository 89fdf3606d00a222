"""One word for every kind of training data: what is given decides how it is read."""

from __future__ import annotations

from pathlib import Path

from blip_fast.data.manifests import ImageRoot, ManifestSource
from blip_fast.data.samples import Source


def open_source(spec: str | Path, *, image_root: ImageRoot | None = None) -> Source:
    """Open a source of samples.

    Args:
        spec: a JSON manifest.
        image_root: see `ManifestSource`.

    Raises:
        ValueError: where it is none of these, saying what was expected.
        OSError: where it cannot be read.
    """
    return ManifestSource(spec, image_root)
