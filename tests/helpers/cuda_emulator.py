"""The CUDA rooms on a CPU: their sources compiled by the C++ compiler, each thread a fiber.

`cuda_emulation/` holds the headers that stand for CUDA's. The library that comes out registers the
operators for the CPU, launches and all.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent / "cuda_emulation"
INCLUDE = FOLDER.parents[2] / "csrc" / "include"
# As the Makefile looks for one.
COMPILERS = (os.environ.get("CXX", "c++"), "g++", "clang++")


def library() -> ctypes.CDLL:
    """The emulated rooms, compiled and loaded at the first call; a skip without a compiler."""
    loaded, message = _build()
    if not message and loaded is None:
        pytest.skip("there is no C++ compiler here (Debian: apt install g++)")
    assert loaded, message
    return loaded


@cache  # failures, too: each test would compile again
def _build() -> tuple[ctypes.CDLL | None, str]:
    """The library, or what the compiler said; neither without a compiler."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None, ""
    torch_folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "libblip_fast_cuda_emulated.so"
        command = [
            *(compiler, "-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
            *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-U_FORTIFY_SOURCE"),
            *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
            *(f"-I{FOLDER}", f"-I{INCLUDE}", f"-isystem{torch_folder / 'include'}"),
            *("-Wl,-Bsymbolic", "-o", path, FOLDER / "library.cpp"),
            torch_folder / "lib" / "libtorch_cpu.so",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return None, done.stderr[-8000:] or f"{compiler} ends with {done.returncode}"
        torch.ops.load_library(path)
        loaded = ctypes.CDLL(str(path))
    loaded.run_kernel.restype = ctypes.c_char_p
    return loaded, ""


def fault_of(kernel: str) -> str:
    """What is wrong with one of the kernels in `library.cpp`; empty if nothing."""
    message: bytes = library().run_kernel(kernel.encode())
    return message.decode()
