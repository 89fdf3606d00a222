"""One word for every kind of training data: what is given decides how it is read."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from blip_fast.data.folder import FolderSource, is_url
from blip_fast.data.manifests import ImageRoot, ManifestSource
from blip_fast.data.samples import Shard, Source
from blip_fast.data.shardlist import list_shards
from blip_fast.data.tars import TarSource
from blip_fast.images import find_images

_MANIFESTS = (".json", ".jsonl")
LISTED = "metadata.jsonl"  # beside the pictures of a folder, as Hugging Face writes it
_EXPECTED = (
    "a .json or .jsonl manifest, .tar shards, .parquet files, or a folder of shards or of pictures "
    "with a .txt or .caption beside each"
)


def open_source(spec: str | Path, *, image_root: ImageRoot | None = None) -> Source:
    """Open a source of samples.

    Args:
        spec: a JSON manifest; tar or parquet shards as `list_shards` takes them, a folder of them
            included (tar shards where it holds both, as img2dataset writes it); a folder of
            pictures with sidecars or a `metadata.jsonl`.
        image_root: what relative paths of pictures begin below; see `ManifestSource`. For shards
            and folders that hold their pictures it must be None.

    Raises:
        ValueError: where it is none of these, saying what was expected, or is damaged.
        OSError: where it cannot be read.
    """
    kind = kind_of(str(spec))
    if kind == "manifest":
        return ManifestSource(_local(str(spec)), image_root)
    if kind == "listed":
        return ManifestSource(Path(spec) / LISTED, image_root)
    if kind == "parquet":
        from blip_fast.data.parquet import ParquetSource  # here, because it imports pyarrow

        if isinstance(image_root, Mapping):
            raise ValueError(f"{spec}: a root for each dataset is for VQA manifests; give one root")
        return ParquetSource(spec, image_root)
    if isinstance(image_root, Mapping) or image_root:
        raise ValueError(f"{spec} holds its pictures itself; leave image_root {image_root!r} out")
    return TarSource(spec) if kind == "tar" else FolderSource(Path(spec))


def open_in_turns(
    spec: str | Path, *, image_root: ImageRoot | None = None, keep: int = 2
) -> list[Source]:
    """Each file of a folder or pattern as a source of its own, for parts that take turns.

    Manifests are read when their turn comes, and only a few are in memory: all parts of a web set
    together would fill it.

    Args:
        keep: manifests in memory at a time; at least one more than have a turn together.

    Raises:
        ValueError: where nothing is found.
    """
    files = _files(spec)
    opened: OrderedDict[str, Source] = OrderedDict()
    return [
        _InTurn(file, image_root, opened, keep)
        if file.endswith(_MANIFESTS)
        else open_source(file, image_root=image_root if file.endswith(".parquet") else None)
        for file in files
    ]


class _InTurn:
    """A manifest that is read again when it has been dropped."""

    def __init__(
        self, name: str, root: ImageRoot | None, opened: OrderedDict[str, Source], keep: int
    ) -> None:
        self.name = name
        self._root, self._opened, self._keep = root, opened, keep
        self._counts: Sequence[int] | None = None

    @property
    def counts(self) -> Sequence[int]:
        if self._counts is None:
            self._counts = list(self._source().counts)
        return self._counts

    def open(self, shard: int) -> Shard:
        return self._source().open(shard)

    def _source(self) -> Source:
        source = self._opened.get(self.name) or open_source(self.name, image_root=self._root)
        self._opened[self.name] = source
        self._opened.move_to_end(self.name)
        while len(self._opened) > self._keep:
            self._opened.popitem(last=False)
        return source


def kind_of(spec: str) -> str:
    """manifest, tar, parquet, listed (a folder with a list of its pictures) or folder."""
    if os.path.isdir(spec):
        names = os.listdir(spec)
        for suffix, kind in ((".tar", "tar"), (".parquet", "parquet"), (LISTED, "listed")):
            if any(name.endswith(suffix) for name in names):
                if kind == "tar" and (pictures := find_images(spec, recursive=False)):
                    raise ValueError(
                        f"{spec} holds tars and pictures, as {pictures[0].name}; give "
                        f"'{spec.rstrip('/')}/*.tar', or move one of the two away"
                    )
                return kind
        if find_images(spec):
            return "folder"
        manifests = sorted(name for name in names if name.endswith(_MANIFESTS))
        hint = f"; give one of its manifests, as {manifests[0]}" if manifests else ""
        raise ValueError(f"{spec} holds no shards and no pictures{hint}; expected {_EXPECTED}")
    path = spec.partition("?")[0] if is_url(spec) else spec  # as of signed URLs
    for suffix, kind in (*((s, "manifest") for s in _MANIFESTS), (".tar", "tar")):
        if path.endswith(suffix):
            return kind
    if path.endswith(".parquet"):
        return "parquet"
    if not is_url(spec) and not os.path.exists(spec) and not set(spec) & set("*{"):
        raise FileNotFoundError(f"{spec} is not there; expected {_EXPECTED}")
    raise ValueError(f"{spec} is of no known kind; expected {_EXPECTED}")


def _local(spec: str) -> Path:
    if is_url(spec) or set(spec) & set("*{"):
        raise ValueError(f"{spec}: a manifest is one file of this machine; name each on its own")
    return Path(spec)


def _files(spec: str | Path) -> list[str]:
    """Those that `open_source` knows, of a folder or pattern."""
    known = (*_MANIFESTS, ".tar", ".parquet")
    if os.path.isdir(spec):
        files = sorted(str(path) for path in Path(spec).iterdir() if path.name.endswith(known))
        # img2dataset's tables beside its shards are about the same pictures
        if any(file.endswith(".tar") for file in files):
            files = [file for file in files if file.endswith(".tar")]
    else:
        files = [file for file in list_shards(spec, "") if file.endswith(known)]
    if not files:
        raise ValueError(f"{spec} has no {', '.join(known)} files")
    return files
