"""One word for every kind of web data: what is given decides how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from blip_fast.data.folder import is_url
from blip_fast.data.open import LISTED, kind_of
from blip_fast.data.web.datasets import WebDataset
from blip_fast.data.web.folders import WebFolder
from blip_fast.data.web.manifests import WebManifest
from blip_fast.data.web.pictures import WebSource
from blip_fast.data.web.tars import WebTars

SHARD_SIZE = 1000  # pictures; what a killed run has to do again, and a file or three for each


def open_web(
    source: Any,
    shard_size: int = SHARD_SIZE,
    *,
    image_root: str | Path | None = None,
    recursive: bool = True,
) -> WebSource:
    """Open a source of web pictures.

    Args:
        source: a folder of pictures with texts beside them or a `metadata.jsonl`; tar shards;
            parquet files; a JSON manifest, COCO's and Karpathy's among them; or a
            `datasets.Dataset`. Shards may be named by brace patterns, by `*`, by URLs that fsspec
            knows, several joined by `::`.
        shard_size: pictures in a shard, where the source is not sharded itself; tars are.
        image_root: what relative paths of manifests and tables begin below.
        recursive: whether folders within a folder are read.

    Raises:
        ValueError: where it is none of these or damaged, saying what was expected.
        OSError: where it cannot be read.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; a shard holds at least 1 picture")
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return WebDataset(source, shard_size)
    if not isinstance(source, (str, Path)):
        if not hasattr(source, "identity"):
            raise ValueError(
                f"a {type(source).__name__} is no source of pictures; give a path, a URL, or one "
                "split of a dataset, as dataset['train']"
            )
        return cast(WebSource, source)  # opened before, or somebody's own
    kind = kind_of(str(source))
    if image_root is not None and kind in ("tar", "folder"):
        raise ValueError(f"{source} holds its pictures itself; leave image_root {image_root} out")
    if kind == "manifest":
        return WebManifest(Path(source), shard_size, image_root)
    if kind == "listed":
        return WebManifest(Path(source) / LISTED, shard_size, image_root)
    if kind == "parquet":
        from blip_fast.data.web.tables import WebTables  # here, because it imports pyarrow

        return WebTables(source, shard_size, image_root)
    return WebTars(source) if kind == "tar" else WebFolder(Path(source), shard_size, recursive)


def folders_of(source: WebSource) -> set[Path]:
    """The folders of this machine in which a source's shards lie, or its pictures; none are known
    of a manifest, a dataset, or a source of somebody's own."""
    from blip_fast.data.web.tables import WebTables  # here, because it imports pyarrow

    if isinstance(source, WebFolder):
        return {source.folder}
    shards: Sequence[str] = ()
    if isinstance(source, WebTars):
        shards = source.shards
    elif isinstance(source, WebTables):
        shards = source.files
    return {Path(shard).parent for shard in shards if not is_url(shard)}
