"""A folder of pictures, each with the text that lies beside it."""

from __future__ import annotations

import os
from pathlib import Path

from blip_fast.data.files import displayable
from blip_fast.data.sidecar import find_sidecar, read_sidecar
from blip_fast.data.web.pictures import NoDamage, WebPicture, digest, slices
from blip_fast.images import find_images


class WebFolder:
    """Pictures below a folder, in order of their paths, cut into shards.

    A picture's text is that of its sidecar, `NAME.txt` or else `NAME.caption`. One that is no
    UTF-8 is a text that failed.
    """

    def __init__(self, folder: Path, shard_size: int, recursive: bool = True) -> None:
        """
        Raises:
            ValueError: where `folder` is no folder or holds no pictures.
        """
        self.name = displayable(folder)
        self.folder = folder
        if not folder.is_dir():
            raise ValueError(f"{self.name} is not a folder; give one that holds pictures")
        # As texts, which take a tenth of what paths take.
        self._names = [os.path.relpath(p, folder) for p in find_images(folder, recursive)]
        if not self._names:
            raise ValueError(f"there are no pictures in {self.name}")
        self._shards = slices(len(self._names), shard_size)

    @property
    def identity(self) -> str:
        return digest(os.fsencode(name).decode("latin-1") for name in self._names)

    @property
    def count(self) -> int:
        return len(self._names)

    def __len__(self) -> int:
        return len(self._shards)

    def open(self, shard: int) -> WebFolderShard:
        return WebFolderShard(self.folder, [self._names[n] for n in self._shards[shard]])

    def check(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"the folder {self.name} is gone")


class WebFolderShard(NoDamage):
    """Some neighbouring pictures of a folder."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> WebPicture:
        path = self._folder / self._names[number]
        key = displayable(Path(self._names[number]).as_posix())
        texts: tuple[str, ...] = ()
        error = ""
        sidecar = find_sidecar(path)
        if sidecar is not None:
            try:
                texts = (read_sidecar(sidecar),)
            except (ValueError, OSError) as problem:
                error = str(problem)
        where = displayable(path.absolute())
        return WebPicture(key, where, path, texts, error=error, text_failed=bool(error))
