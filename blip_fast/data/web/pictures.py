"""A picture of the web with what stood beside it, and the shards in which pictures come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from blip_fast.images import Status


@dataclass(frozen=True)
class WebPicture:
    """One picture that a source names; whether it can be decoded is not known yet.

    Attributes:
        key: names it within its source. It is data: `../../x` and `/etc/x` are keys, too.
        path: where it comes from, for people and tables: path, URL, or shard and member.
        image: path, URL or encoded bytes; None where there are none.
        texts: those that came with it, not cleaned; may be empty texts, or none at all.
        status: why there is no image; success where there is one.
        error: why there is no image, or why a text cannot be read; else empty.
        text_failed: whether there is a text that cannot be read.
        extra: the other fields that came with it, as those of img2dataset's json.
    """

    key: str
    path: str
    image: Path | str | bytes | None
    texts: tuple[str, ...] = ()
    status: Status = Status.SUCCESS
    error: str = ""
    text_failed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


class WebShard(Protocol):
    """A part of a source, open for reading; safe to read from several threads."""

    @property
    def losses(self) -> Sequence[Mapping[str, Any]]:
        """What is wrong with it as a whole: `offset`, a byte, and `what`, in words."""

    @property
    def lost(self) -> int:
        """How many pictures there should be and are not."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> WebPicture:
        """One picture; whatever is wrong with it is in its status and error."""


class WebSource(Protocol):
    """Pictures in shards, always the same ones in the same order."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """What tells one source from another: a digest of what lies in its shards, not of where
        it lies."""

    @property
    def count(self) -> int | None:
        """All pictures, where that is known without reading every shard."""

    def __len__(self) -> int:
        """The number of shards."""

    def open(self, shard: int) -> WebShard:
        """Open a shard; one that lies elsewhere is fetched.

        Raises:
            OSError: where it cannot be read.
            ValueError: where it is damaged beyond reading.
        """

    def check(self) -> None:
        """
        Raises:
            OSError: where the source as a whole has gone, as a disk that was taken away.
        """


def digest(parts: Iterable[str]) -> str:
    """One short name for a sequence of texts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return state.hexdigest()


def as_text(value: str) -> str:
    """A text that UTF-8 can hold: half a surrogate pair, which JSON may hold, becomes `?`."""
    return value.encode("utf-8", "replace").decode("utf-8")


class NoDamage:
    """What shards share that are no archives."""

    losses: Sequence[Mapping[str, Any]] = ()
    lost = 0


def slices(total: int, size: int) -> list[range]:
    """Cut `total` pictures into ranges of `size`; the last may be shorter."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
