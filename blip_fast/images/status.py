"""What became of one row: the words that every output file and report uses, and their error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

_LONGEST_REASON = 400  # characters; a hostile file must not fill a log or a table with its text


class Status(str, Enum):
    """The outcome of a row; `str()` and `format()` give the bare word that is written to files."""

    SUCCESS = "success"
    FAILED_TO_READ = "failed_to_read"  # no bytes: missing, empty, a folder, the network
    FAILED_TO_DECODE = "failed_to_decode"  # bytes, but no whole picture of a known kind
    TOO_LARGE = "too_large"  # over a limit of the options, or by itself over the memory there is
    EMPTY_TEXT = "empty_text"
    FAILED_SCORE = "failed_score"

    def __str__(self) -> str:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


class ImageError(ValueError):
    """An image that cannot be used, with the status that its row gets.

    Attributes:
        status: any but `Status.SUCCESS`.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[ImageError], tuple[Status, str]]:
        return type(self), (self.status, str(self))  # so that it survives the way out of a worker


@contextmanager
def failing_as(status: Status) -> Iterator[None]:
    """Turn whatever is raised inside into an ImageError of `status`; an ImageError passes as it is.

    File readers and image decoders raise nearly every type there is on hostile input, so the type
    becomes part of the message and nothing else is concluded from it; but for a MemoryError, which
    is `too_large`.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(Status.TOO_LARGE, one_line(f"MemoryError: {error}")) from error
    except Exception as error:
        raise ImageError(status, one_line(f"{type(error).__name__}: {error}")) from error


def one_line(text: str) -> str:
    """`text` without line breaks and runs of blanks, cut where it is very long."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."
