"""Sources: folders, files and URLs to a list of pictures, each with the web text beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_fast.data.files import displayable
from blip_fast.data.samples import BadSample, Sample, check_text
from blip_fast.data.sidecar import find_sidecar, read_sidecar
from blip_fast.images import find_images


@dataclass(frozen=True)
class Found:
    """A picture that a job will read; whether it can be read is not known yet.

    Attributes:
        key: its path below the folder it was found in, with `/` on every system; a file's name;
            a URL itself. The same wherever the folder lies.
        source: what `read_pictures` takes.
    """

    key: str
    source: Path | str

    @property
    def name(self) -> str:
        """The whole path or URL, for people."""
        return displayable(self.source)


def is_url(source: str | Path) -> bool:
    """Whether a source is opened through fsspec, and not as a file of this machine."""
    return isinstance(source, str) and "://" in source


def find(inputs: Sequence[str | Path], recursive: bool = True) -> list[Found]:
    """The pictures of folders, files and URLs, in the order given, each once.

    A file is taken at its word, whatever its name and whether it exists: reading it will tell.
    """
    found: dict[Path | str, Found] = {}
    for given in inputs:
        if is_url(given):
            found.setdefault(given, Found(str(given), given))
            continue
        path = Path(given)
        if not path.is_dir():
            found.setdefault(path, Found(displayable(path.name), path))
            continue
        for picture in find_images(path, recursive=recursive):
            key = displayable(picture.relative_to(path).as_posix())
            found.setdefault(picture, Found(key, picture))
    return list(found.values())


class FolderSource:
    """The pictures of a folder with the sidecars beside them as samples, in one shard."""

    def __init__(self, folder: Path) -> None:
        """List the pictures; a sidecar is read with its sample.

        Raises:
            ValueError: where `folder` is no folder, or holds no pictures.
        """
        self.name = displayable(folder)
        if not folder.is_dir():
            raise ValueError(f"{self.name} is not a folder; give one that holds pictures")
        self._found = find([folder])
        if not self._found:
            raise ValueError(f"{self.name} holds no pictures")

    @property
    def counts(self) -> Sequence[int]:
        return [len(self._found)]

    def open(self, shard: int) -> FolderSource:
        return self

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, number: int) -> Sample:
        found = self._found[number]
        path = Path(found.source)
        sidecar = find_sidecar(path)
        if sidecar is None:
            raise BadSample(f"{found.name} has no .txt or .caption beside it")
        try:
            text = read_sidecar(sidecar)
        except (ValueError, OSError) as error:
            raise BadSample(str(error)) from error
        return Sample(found.key, (path,), check_text(text, found.name), found.key)
