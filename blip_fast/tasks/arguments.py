"""One value for all images, or one for each: what the methods of `Blip` take."""

from __future__ import annotations

from collections.abc import Sequence


def texts_of(texts: str | Sequence[str]) -> Sequence[str]:
    """A text, or several, as several."""
    return [texts] if isinstance(texts, str) else texts


def for_each(name: str, values: str | Sequence[str], number: int) -> Sequence[str]:
    """A value for each of `number` images; one alone is that of all.

    Raises:
        ValueError: where there is another number of them.
    """
    if isinstance(values, str):
        return [values] * number
    same_number(name, len(values), number)
    return values


def same_number(name: str, given: int, images: int) -> None:
    """Raise a ValueError where there are not as many values as images."""
    if given != images:
        raise ValueError(f"there are {given} {name} for {images} images; give one, or one for each")
