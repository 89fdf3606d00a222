"""The integrity of a source: what is damaged, where, and which pictures are there twice.

Everything is read once, by threads, and nothing is kept but a few bytes for each picture: what of
it must be shown is read again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from blip_fast.data.alike import near, same
from blip_fast.data.web import WebPicture, WebShard, WebSource
from blip_fast.images import ImageError, ImageOptions, Status, decode, read_bytes
from blip_fast.images.fingerprint import fingerprint

# What is found beside the statuses of pictures. `duplicate` and `no_text` are no faults: some
# sources are meant so.
UNREADABLE_SHARD = "unreadable_shard"
DAMAGED = "damaged"
LOST = "lost"
UNREADABLE_TEXT = "unreadable_text"
UNSAFE_KEY = "unsafe_key"

LISTED = 1000  # faults that are told one by one
_WORKERS = 8
_AHEAD = 4  # pictures read or being read for each worker
_NO_CODE = 0


@dataclass(frozen=True)
class Fault:
    """Something wrong.

    Attributes:
        kind: a status of a picture or text, or one of this module's words.
        shard: its number.
        where: the shard's name or the picture's path.
        key: of the picture; empty where it is of a whole shard.
        offset: byte of the shard; None where it is not known.
        what: in words.
    """

    kind: str
    shard: int
    where: str
    key: str
    offset: int | None
    what: str

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class Check:
    """What was found.

    Attributes:
        count: pictures that were found, readable or not.
        readable: of them.
        faults: how many, by kind; `lost` counts samples that should be there.
        listed: the first faults.
        without_text: pictures with no text at all.
        sides: width and height of each readable picture, one after the other.
        exact: groups of pictures with the same bytes, as shard and number.
        alike: groups that look the same, without those that have nothing but equal bytes.
    """

    source: WebSource
    shards: int = 0
    count: int = 0
    readable: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    listed: list[Fault] = field(default_factory=list)
    without_text: int = 0
    sides: array[int] = field(default_factory=lambda: array("i"))
    exact: list[list[tuple[int, int]]] = field(default_factory=list)
    alike: list[list[tuple[int, int]]] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether no fault was found; duplicates and pictures without texts are none."""
        return not self.faults

    @property
    def repeated(self) -> int:
        """Pictures beyond the first of each group of equal ones."""
        return sum(len(group) - 1 for group in self.exact)

    def add(self, fault: Fault, number: int = 1) -> None:
        self.faults[fault.kind] += number
        if len(self.listed) < LISTED:
            self.listed.append(fault)

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "source": self.source.name,
            "shards": self.shards,
            "count": self.count,
            "readable": self.readable,
            "without_text": self.without_text,
            "faults": dict(sorted(self.faults.items())),
            "exact_duplicates": self.repeated,
            "exact_groups": len(self.exact),
            "near_groups": len(self.alike),
        }


@dataclass(frozen=True)
class _Seen:
    """One picture, read."""

    picture: WebPicture
    status: Status
    error: str
    digest: bytes = b""
    code: int | None = None
    size: tuple[int, int] = (0, 0)


def check_source(
    source: WebSource,
    *,
    duplicates: bool = True,
    options: ImageOptions | None = None,
    progress: Callable[[int], object] | None = None,
) -> Check:
    """Read a source whole and tell what is wrong with it.

    Args:
        duplicates: look for pictures that are there twice, too; 40 bytes of memory for each.
        options: limits of size beyond which a picture is a fault.
        progress: called with the number of pictures just read.
    """
    options = options or ImageOptions()
    found = Check(source)
    codes = _Codes()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="check") as pool:
        for number in range(len(source)):
            try:
                shard = source.open(number)
            except (OSError, ValueError) as error:
                found.add(Fault(UNREADABLE_SHARD, number, source.name, "", None, str(error)))
                continue
            found.shards += 1
            _check_shard(found, shard, number)
            for place, seen in enumerate(_read(pool, shard, options, duplicates)):
                _check_picture(found, seen, number)
                if seen.digest:
                    codes.add(number, place, seen)
                if progress is not None:
                    progress(1)
    if duplicates:
        found.exact, found.alike = codes.groups()
    return found


def _check_shard(found: Check, shard: WebShard, number: int) -> None:
    name = getattr(shard, "name", found.source.name)
    for loss in shard.losses:
        offset, what = loss["offset"], loss["what"]
        found.add(Fault(DAMAGED, number, name, "", offset, what))
    if shard.lost:
        what = f"{shard.lost} of {shard.lost + len(shard)} samples are lost"
        found.add(Fault(LOST, number, name, "", None, what), shard.lost)


def _check_picture(found: Check, seen: _Seen, shard: int) -> None:
    picture = seen.picture
    found.count += 1

    def add(kind: str, what: str) -> None:
        found.add(Fault(kind, shard, picture.path, picture.key, None, what))

    if seen.status is Status.SUCCESS:
        found.readable += 1
        found.sides.extend(seen.size)
    else:
        add(seen.status.value, seen.error)
    if picture.text_failed:
        add(UNREADABLE_TEXT, picture.error)
    elif not picture.texts:
        found.without_text += 1
    elif not all(text.strip() for text in picture.texts):
        add(Status.EMPTY_TEXT.value, "the text is empty")
    if not is_safe(picture.key):
        add(UNSAFE_KEY, f"as a file's name {picture.key!r} would leave its folder or be refused")


def is_safe(key: str) -> bool:
    """Whether a key could be a file's name below a folder: data need not be."""
    path = PurePosixPath(key)
    if "://" in key:  # a URL is a key of its own kind
        return key.isprintable()
    return key.isprintable() and not path.is_absolute() and ".." not in path.parts and bool(key)


def _read(
    pool: ThreadPoolExecutor, shard: WebShard, options: ImageOptions, duplicates: bool
) -> Iterator[_Seen]:
    """The pictures of a shard, read and decoded, in order, a few ahead."""
    waiting: deque[Future[_Seen]] = deque()
    for number in range(len(shard)):
        waiting.append(pool.submit(_see, shard, number, options, duplicates))
        if len(waiting) > _WORKERS * _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _see(shard: WebShard, number: int, options: ImageOptions, duplicates: bool) -> _Seen:
    picture = shard[number]
    if picture.image is None:
        return _Seen(picture, picture.status, picture.error)
    try:
        data = read_bytes(picture.image, options.max_bytes)
        image = decode(data, options)
        code = fingerprint(image) if duplicates else None
    except ImageError as error:
        return _Seen(_light(picture), error.status, str(error))
    digest = hashlib.blake2b(data, digest_size=16).digest() if duplicates else b""
    return _Seen(_light(picture), Status.SUCCESS, "", digest, code, image.file_size)


def _light(picture: WebPicture) -> WebPicture:
    """Without its bytes: many wait in line."""
    return WebPicture(**{**vars(picture), "image": None})


class _Codes:
    """Digest, perceptual code and place of every readable picture, in 40 bytes."""

    def __init__(self) -> None:
        self._digests, self._codes = bytearray(), array("Q")
        self._shards, self._numbers = array("q"), array("q")

    def add(self, shard: int, number: int, seen: _Seen) -> None:
        self._digests += seen.digest
        self._codes.append(_NO_CODE if seen.code is None else seen.code)
        self._shards.append(shard)
        self._numbers.append(number)

    def groups(self) -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
        """Groups of equal bytes, and groups that look the same and differ in bytes."""
        if not self._codes:
            return [], []
        digests = np.frombuffer(bytes(self._digests), dtype=[("a", "<u8"), ("b", "<u8")])
        exact = same(digests)
        codes = np.array(self._codes, dtype=np.uint64)
        detailed = np.flatnonzero(codes != _NO_CODE)
        looks = [detailed[group] for group in near(codes[detailed])]
        alike = [group for group in looks if len(np.unique(digests[group])) > 1]
        return [self._places(g) for g in exact], [self._places(g) for g in alike]

    def _places(self, group: Iterable[int]) -> list[tuple[int, int]]:
        return [(self._shards[int(i)], self._numbers[int(i)]) for i in group]


def reasons(check: Check) -> Mapping[str, list[Fault]]:
    """The listed faults by kind, the commonest kind first."""
    by_kind: dict[str, list[Fault]] = {kind: [] for kind, _ in check.faults.most_common()}
    for fault in check.listed:
        by_kind[fault.kind].append(fault)
    return by_kind
