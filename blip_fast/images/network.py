"""Networks fail for a moment: what is worth asking for again, and how often."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LIBRARIES = ("aiohttp", "botocore", "gcsfs", "fsspec", "httpx")  # their errors are no OSError
_BUSY = (408, 425, 429)  # of HTTP: answers below 500 that ask to come again
_DENIED = (401, 403)


def patiently(work: Callable[[], T], pauses: Sequence[float]) -> T:
    """Do something, and again after each pause where a network failed it.

    Args:
        pauses: in seconds; one for each further attempt.

    Raises:
        OSError: where the last attempt failed, too; what is not a network's fault, such as a file
            that is not there, at once.
        ImportError: where a package is missing that reads such URLs.
    """
    for pause in (*pauses, None):
        try:
            return work()
        except ImportError as error:
            raise ImportError(f"{error}: pip install 'blip-fast[remote]'") from error
        except Exception as error:
            reason = _reason(error)
            if pause is None or not passing(reason):
                if _of_library(reason) or isinstance(reason, asyncio.TimeoutError):
                    raise _as_os_error(reason) from error
                raise
            time.sleep(pause)
    raise AssertionError  # the last pause is None


def passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, _FINAL) or _is_no_host(error):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in _BUSY
    return isinstance(error, (OSError, asyncio.TimeoutError)) or _of_library(error)


def _reason(error: Exception) -> Exception:
    """What lies behind fsspec's word for every picture that a web server does not give: it is not
    found."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return cause if _of_library(cause) else error
    return error


def _of_library(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def _is_no_host(error: Exception) -> bool:
    """Whether nobody has this name, as so many of old web tables."""
    reason = getattr(error, "os_error", error)
    return isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME


def _as_os_error(error: Exception) -> OSError:
    words = f"{type(error).__name__}: {error}"
    status = getattr(error, "status", None)
    if status == 404:
        return FileNotFoundError(words)
    return PermissionError(words) if status in _DENIED else ConnectionError(words)
