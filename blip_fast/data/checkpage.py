"""The page that shows what is wrong with a source: one HTML file, as the other reports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blip_fast.data.check import Check, reasons
from blip_fast.data.files import displayable
from blip_fast.data.pages import data_uri, page_template
from blip_fast.data.web import WebShard
from blip_fast.images import ImageOptions, read_picture

_GROUPS = 60  # of duplicates that are shown, of each kind
_MEMBERS = 6  # of a group
_THUMBNAIL = 144  # pixels of the longer side
_OPEN = 4  # shards that are kept open for them
_SHOWN = 300  # characters


@dataclass(frozen=True)
class Member:
    """A picture of a group: an address that holds it, empty where it cannot be read again."""

    key: str
    path: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Group:
    members: list[Member]
    left: int


def render_check(check: Check) -> str:
    """The page as text; every text in it that came from outside is escaped."""
    kinds = [
        (kind, check.faults[kind], some, check.faults[kind] - len(some))
        for kind, some in reasons(check).items()
    ]
    opened = functools.lru_cache(_OPEN)(check.source.open)
    return page_template(Path(__file__).with_name("check.html.j2")).render(
        check=check,
        name=displayable(check.source.name),
        kinds=kinds,
        sides=_sides(check),
        exact=[_group(opened, group) for group in check.exact[:_GROUPS]],
        alike=[_group(opened, group) for group in check.alike[:_GROUPS]],
        shorten=_shorten,
    )


def _sides(check: Check) -> list[tuple[str, str]]:
    """The least, the middle and the largest picture by pixels."""
    sides = np.array(check.sides, np.int64).reshape(-1, 2)
    if not len(sides):
        return []
    order = np.argsort(sides.prod(1), kind="stable")
    places = (("smallest", 0), ("median", len(order) // 2), ("largest", -1))
    return [(name, "{} × {}".format(*sides[order[place]])) for name, place in places]


def _group(opened: Callable[[int], WebShard], group: Sequence[tuple[int, int]]) -> Group:
    shown = group[:_MEMBERS]
    return Group([_member(opened, *place) for place in shown], len(group) - len(shown))


def _member(opened: Callable[[int], WebShard], shard: int, number: int) -> Member:
    try:
        picture = opened(shard)[number]
    except (OSError, ValueError, IndexError) as error:  # it was there when it was checked
        return Member(f"number {number}", str(error), "", 0, 0)
    if picture.image is not None:
        read = read_picture(picture.image, ImageOptions(size=_THUMBNAIL))
        if read.pixels is not None:
            ratio = min(max(read.width / read.height, 0.2), 5.0)
            width = round(_THUMBNAIL * min(ratio, 1))
            height = round(_THUMBNAIL / max(ratio, 1))
            uri = data_uri(read.pixels, (width, height))
            return Member(picture.key, picture.path, uri, read.width, read.height)
    return Member(picture.key, picture.path, "", 0, 0)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
