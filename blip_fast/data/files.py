"""Files that are whole or absent: written under another name, then moved into place."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, durable: bool = True, scratch: Path | None = None) -> Iterator[Path]:
    """Give a temporary path that becomes `path` when the block ends without an error.

    Args:
        path: the file to write; an older one stays until the new one is complete.
        durable: whether the content is on the disk before it takes its name, so that a power cut
            leaves the old file or the new one. Costs a disk's latency for each file.
        scratch: a folder on the same disk for the temporary file, which a killed process leaves
            behind; that of the file itself where none is given.
    """
    # Short, because the file's own name may be as long as the system allows; random, because other
    # threads write here too, and on other machines processes of the same number.
    temporary = (scratch or path.parent) / f".blip_fast-{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, scratch: Path | None = None) -> None:
    """Write a value as UTF-8 JSON, atomically; `scratch` as for `replacing`.

    Raises:
        ValueError: where the value holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path, scratch=scratch) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def displayable(path: Path | str) -> str:
    """A path as text that UTF-8 can hold, the same in every locale.

    Bytes of a name that are not UTF-8 appear as `\\xE9`.
    """
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:  # text that did not come from this system's files, as in a URL
        name = str(path).encode("utf-8", "backslashreplace")
    return name.decode("utf-8", "backslashreplace")
