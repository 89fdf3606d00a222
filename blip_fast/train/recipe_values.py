"""Settings as people write them, in YAML or on a command line, to values of the right type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ValueError: where it is no YAML, or no table of settings.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; a recipe is `key: value` lines")
    return {str(key): value for key, value in values.items()}


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words; the last of a key counts.

    Raises:
        ValueError: naming the word that is none.
    """
    values = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{word!r} is no setting; write key=value, as in batch_size=32")
        values[key.strip().removeprefix("--").replace("-", "_")] = value
    return values


def convert(key: str, value: Any, hint: Any) -> Any:
    """A value as the field's type has it.

    Text is accepted for every type, because YAML takes `1e-5` for text and a command line has
    nothing else; numbers are not accepted for truth values nor the other way round.

    Raises:
        ValueError: naming key, value and what would do.
    """
    optional = type(None) in get_args(hint)
    if optional and (value is None or str(value).strip().lower() in ("", "none", "null")):
        return None
    kind = next(a for a in get_args(hint) if a is not type(None)) if optional else hint
    origin = get_origin(kind)
    if kind is str or origin is Literal:
        return _text(key, value)
    if origin is tuple:
        return tuple(_text(key, item) for item in _items(value))
    if kind is bool:
        return _truth(key, value)
    if kind is int or kind is float:
        return _number(key, value, kind)
    return _sizes(key, value)


def choices_of(hint: Any) -> tuple[str, ...]:
    """The words that a field may hold; none where any will do."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def nearest(key: str, known: Iterable[str]) -> str:
    """The known names most like a wrong one, as the end of a message."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | Path):
        return str(value)
    raise ValueError(f"{key} is {value!r}; it must be text, in quotes where it is like a number")


def _items(value: Any) -> Sequence[Any]:
    """A list, or one item that stands for itself; text may be a list in YAML's notation."""
    if isinstance(value, str):
        if not value.strip().startswith("["):
            return [value] if value.strip() else []
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{value!r} is no list; write [one,two]") from None
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


def _truth(key: str, value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise ValueError(f"{key} is {value!r}; it must be true or false")


def _number(key: str, value: Any, kind: type) -> float:
    what = "a whole number" if kind is int else "a number, as 0.05 or 1e-5"
    if not isinstance(value, bool | None | list | dict):
        try:
            number = float(value)
            if kind is float:
                return number
            if number == int(number):
                return int(number)
        except (ValueError, TypeError, OverflowError):
            pass
    raise ValueError(f"{key} is {value!r}; it must be {what}")


def _sizes(key: str, value: Any) -> dict[str, Any]:
    """A table of numbers, also in YAML's notation: {depth: 4, width: 256}."""
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            value = {value: None}
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is {value!r}; write {key}.depth=4, or {{depth: 4, width: 256}}")
    return {
        str(name): _number(f"{key}.{name}", size, float if str(name).endswith("eps") else int)
        for name, size in value.items()
    }
