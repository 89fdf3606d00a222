"""What the methods of `Blip` take, checked: one value for all images or one for each, numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any


def texts_of(texts: str | Iterable[str]) -> list[str]:
    """A text, or several, as several.

    Raises:
        ValueError: where something is no text.
    """
    several = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    for place, text in enumerate(several):
        if not isinstance(text, str):
            raise ValueError(f"text {place} is {text!r}, a {type(text).__name__}; give strings")
    return several


def for_each(name: str, values: str | Iterable[str], number: int) -> list[str]:
    """A text for each of `number` images; one alone, not in a list, is that of all.

    Raises:
        ValueError: where there is another number of them, or something is no text.
    """
    texts = texts_of(values)
    if isinstance(values, str):
        return texts * number
    same_number(name, len(texts), number)
    return texts


def seeds_of(seed: int | Iterable[int], number: int) -> Sequence[int]:
    """A seed for each of `number` images: those that follow one number, or the given ones.

    Raises:
        ValueError: where there is another number of them, or something is no integer.
    """
    if isinstance(seed, Integral):
        return range(int(seed), int(seed) + number)
    seeds = list(seed) if isinstance(seed, Iterable) else [seed]
    if strange := [one for one in seeds if not isinstance(one, Integral)]:
        raise ValueError(f"seed {strange[0]!r} is not an integer")
    same_number("seeds", len(seeds), number)
    return [int(one) for one in seeds]


def same_number(name: str, given: int, images: int) -> None:
    """Raise a ValueError where there are not as many values as images."""
    if given != images:
        raise ValueError(f"there are {given} {name} for {images} images; give one, or one for each")


def positive(name: str, value: Any, default: int) -> int:
    """A number of at least 1, the default where none is given.

    Raises:
        ValueError: where it is something else.
    """
    if value is None:
        return default
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
    return int(value)


def text_length(name: str, value: int | None, most: int) -> int:
    """A number of tokens that texts are cut to, the model's maximum where none is given.

    Raises:
        ValueError: where it leaves no room for a text between its first and last token, or is
            more than the model has positions for.
    """
    length = positive(name, value, most)
    if not 3 <= length <= most:
        raise ValueError(f"{name} is {length}; the model takes texts of 3 to {most} tokens")
    return length
