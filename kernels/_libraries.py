"""The compiled libraries: where they lie, and how they are loaded.

They hold operators for the schemas of `_ops.py` and know torch's stable ABI alone, so a library
that was built once is loaded by every torch from 2.10 on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch


def native_library() -> Path:
    """Where the build puts the compiled CPU rooms; the file need not exist.

    `BLIP_FAST_NATIVE_LIBRARY` names another build of them, as `make asan` does; that one must.
    """
    if other := os.environ.get("BLIP_FAST_NATIVE_LIBRARY"):
        return Path(other).resolve(strict=True)
    return _folder() / "libblip_fast_cpu.so"


def cuda_library() -> Path:
    """Where the build puts the compiled CUDA rooms; the file need not exist."""
    return _folder() / "libblip_fast_cuda.so"


def load(path: Path) -> bool:
    """Load a library, and say whether it was there.

    Raises:
        ImportError: where it is there and does not load.
    """
    if not path.exists():
        return False
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path.name} does not load under torch {torch.__version__}: {error}. It needs "
            "torch 2.10 or later; reinstall blip-fast to build it for this machine, or with "
            f"{_without(path)} to do without it"
        ) from error
    return True


def _folder() -> Path:
    package: Any = sys.modules["blip_fast"]
    return Path(package.__path__[0]) / "lib"


def _without(path: Path) -> str:
    return "BLIP_FAST_CUDA=0" if path.name == "libblip_fast_cuda.so" else "BLIP_FAST_NATIVE=0"
