"""Rows of a JSON file, one at a time: a list of objects, or one object on each line.

A manifest of the web has tens of millions of rows. Only a megabyte of its text is in memory at
once, and never all rows as Python objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from blip_fast.data.files import displayable
from blip_fast.data.samples import BadSample

_CHUNK = 2**20  # characters
_BLANK = " \t\n\r"


def read_json_rows(path: Path) -> Iterator[Any]:
    """The values of a JSON list, or of JSON lines, in order.

    A line that is no JSON is given as a BadSample that says so: the other lines are good, as where
    a writer was stopped. In a list nothing after a fault can be told apart.

    Raises:
        ValueError: naming the file and the row where a list is damaged or does not end.
    """
    with open_utf8(path) as file:
        first = next_character(file)
        yield from _list(file, path) if first == "[" else _lines(file, first, path)


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The whole of a file that is one object; None where it is a list or JSON lines, of which no
    more is read than the first.

    Raises:
        ValueError: where it is not UTF-8.
    """
    with open_utf8(path) as file:
        if next_character(file) != "{":
            return None
        head = "{" + file.readline()
        value = _parsed(head)
        if value is None:  # an object of many lines, or JSON lines of which the first is damaged
            value = _parsed(head + file.read())
        elif next_character(file):
            return None
    return value if isinstance(value, dict) else None


@contextmanager
def open_utf8(path: Path) -> Iterator[IO[str]]:
    """A text file, open; a byte order mark is left out.

    Raises:
        ValueError: where what is read is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(f"{displayable(path)} is not UTF-8; save it as UTF-8") from error


def next_character(file: IO[str]) -> str:
    """The next one that is no white space; empty at the end."""
    while (character := file.read(1)) and character in _BLANK:
        pass
    return character


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _lines(file: IO[str], first: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(file):
        line = first + line if number == 0 else line
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            yield BadSample(f"{displayable(path)}, line {number + 1}: {error}")


def _list(file: IO[str], path: Path) -> Iterator[Any]:
    """What follows the bracket. A row that is not complete yet makes more text be read."""
    decode = json.JSONDecoder().raw_decode
    text, at, number, chunk = "", 0, 0, _CHUNK
    while True:
        problem = "the list does not end"
        at = _past(text, at, _BLANK + ",")
        if text[at : at + 1] == "]":
            return
        if at < len(text):
            try:
                row, end = decode(text, at)
            except json.JSONDecodeError as error:
                problem = error.msg
            else:
                end = _past(text, end, _BLANK)
                if text[end : end + 1] in (",", "]"):  # else `12` may be the beginning of `12.5`
                    yield row
                    at, number, chunk = end, number + 1, _CHUNK
                    continue
        more = file.read(chunk)
        if not more:
            raise ValueError(f"{displayable(path)}, row {number}: {problem}")
        text, at = text[at:] + more, 0
        chunk *= 2  # a row longer than a chunk is parsed again, but few times


def _past(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
