"""The rooms' Triton kernels under the interpreter, each room in a process of its own.

Interpreted, `triton` patches its language for good: it must not happen in this process, where other
tests compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Not `-m pytest`, which would put ./kernels on the path as a package of its own.
PYTEST = "import sys; sys.path.remove(''); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((Path(__file__).parent / "triton").glob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("test_"))
def test_interpreted(path: Path) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", PYTEST, "-x", "-rs", "-p", "no:cacheprovider", str(path)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0, f"{path.name} fails; its output is above"
    assert " passed" in done.stdout and "triton: " not in done.stdout, "it was not run"
