"""Networks fail for a moment: what is worth asking for again, and how often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
_LIBRARIES = ("aiohttp", "botocore", "gcsfs", "fsspec", "httpx")  # their errors are no OSError
_BUSY = (408, 425, 429)  # of HTTP: answers below 500 that ask to come again


def patiently(work: Callable[[], T], pauses: Sequence[float]) -> T:
    """Do something, and again after each pause where a network failed it.

    Args:
        pauses: in seconds; one for each further attempt.

    Raises:
        OSError: where the last attempt failed, too; what is not a network's fault, such as a file
            that is not there, at once and as it is.
    """
    for pause in (*pauses, None):
        try:
            return work()
        except Exception as error:
            if not passing(error):
                raise
            if pause is None:
                raise _as_os_error(error) from error
            time.sleep(pause)
    raise AssertionError  # the last pause is None


def passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, _FINAL):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in _BUSY
    if isinstance(error, (OSError, asyncio.TimeoutError)):
        return True
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def _as_os_error(error: Exception) -> OSError:
    if isinstance(error, OSError):
        return error
    return ConnectionError(f"{type(error).__name__}: {error}")
