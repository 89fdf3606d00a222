"""Shards by one word: a path, a pattern, a folder, a URL, or several of these joined by `::`."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from blip_fast.data.folder import is_url
from blip_fast.images import network

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # shards that one pattern may name


def list_shards(spec: str | Path, suffix: str) -> list[str]:
    """Paths and URLs of shards, in order.

    Args:
        spec: `00000.tar`; `{00000..00099}.tar` and `{a,b}.tar`, which need not exist; `*.tar`,
            which is sorted; a folder, whose files with the suffix are sorted; URLs of all these
            but folders; several, joined by `::`. A chain of fsspec, as
            `simplecache::s3://bucket/0.tar`, is one URL.
        suffix: of shards in a folder, with its dot.

    Raises:
        ValueError: where nothing is found, or a shard is named twice.
    """
    shards = [shard for part in _parts(str(spec)) for shard in _expanded(part, suffix)]
    if not shards:
        raise ValueError(f"{spec}: no {suffix} shards there")
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise ValueError(f"{spec} names {twice} more than once")
    return shards


def expand_braces(pattern: str) -> list[str]:
    """`{08..10}` to 08, 09 and 10, `{a,b}` to a and b; every combination, in order.

    Raises:
        ValueError: where a range runs backwards or there are too many.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    if limits := _RANGE.fullmatch(found[1]):
        first, last = int(limits[1]), int(limits[2])
        if not first <= last < first + _MOST:
            raise ValueError(
                f"{pattern}: {found[0]} must run upwards and name under {_MOST} shards"
            )
        choices = [str(n).zfill(len(limits[1])) for n in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    begin, end = pattern[: found.start()], pattern[found.end() :]
    return [begin + choice + rest for rest in expand_braces(end) for choice in choices]


def beside(shard: str, end: str) -> str:
    """The file of a shard's name with another end, as `00000_stats.json`; a URL keeps its query."""
    path, mark, query = shard.partition("?") if is_url(shard) else (shard, "", "")
    return path.removesuffix(".tar") + end + mark + query


def _parts(spec: str) -> list[str]:
    """Cut at `::`, but leave the words of fsspec, which have no slash, dot or brace, in place."""
    parts: list[str] = []
    chained = ""
    for part in spec.split("::"):
        if part.isalnum() and not os.path.exists(part):
            chained += part + "::"
        else:
            parts.append(chained + part)
            chained = ""
    return [*parts, chained.removesuffix("::")] if chained else parts


def _expanded(part: str, suffix: str) -> list[str]:
    if os.path.isdir(part):
        return sorted(str(path) for path in Path(part).iterdir() if path.name.endswith(suffix))
    return [shard for pattern in expand_braces(part) for shard in _globbed(pattern)]


def _globbed(pattern: str) -> list[str]:
    signs = "*[" if is_url(pattern) else "*?["  # a URL's question mark begins its query
    if not any(sign in pattern for sign in signs) or os.path.exists(pattern):
        return [pattern]
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    import fsspec  # here, because few need it and it takes time to import

    files, path = network.patiently(lambda: fsspec.url_to_fs(pattern), ())
    return sorted(files.unstrip_protocol(found) for found in files.glob(path))
