"""What people install: the archive of sources, the native wheel and the pure one.

The wheels are built from the unpacked archive, which has no symbolic links: a wheel that is whole
proves that the archive is, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="building needs setuptools; see the extra `build`")

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "blip_fast/lib/libblip_fast_cpu.so"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")


def run_backend(
    call: str, folder: Path, native: bool, before: str = ""
) -> subprocess.CompletedProcess:
    """Call `setuptools.build_meta` in `folder` in a process of its own, as pip would."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{before}\nimport setuptools.build_meta as backend\nbackend.{call}",
        ],
        cwd=folder,
        env={**os.environ, "BLIP_FAST_NATIVE": str(int(native))},
        capture_output=True,
        text=True,
    )


def build_wheel(source: Path, folder: Path, native: bool) -> zipfile.ZipFile:
    done = run_backend(f"build_wheel({str(folder)!r})", source, native)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of sources, built from a copy of the checkout, and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    checkout = folder / "checkout"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "lib", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=unwanted)
    done = run_backend(f"build_sdist({str(folder)!r})", checkout, native=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(folder / "blip_fast-0.1.0.tar.gz") as archive:
        # As the argument `filter`, which early patch releases of Python 3.10 and 3.11 lack.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return folder / "blip_fast-0.1.0"


def python_files(folder: Path) -> set[str]:
    """Paths below `folder` of the modules in it, in packages only."""
    files = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return {str(path) for path in files if (folder / path.parent / "__init__.py").exists()}


def test_sdist_holds_native_sources_and_kernels(source: Path) -> None:
    rooms = {f"kernels/{path}" for path in python_files(ROOT / "kernels")}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert "kernels/__init__.py" in rooms
    assert "csrc/cpu/add_layernorm.cpp" in native
    for path in {"CMakeLists.txt", "LICENSE"} | rooms | native:
        assert (source / path).is_file(), path
    assert not (source / "blip_fast" / "kernels").exists()


@needs_compiler
def test_native_wheel_serves_every_python(source: Path, tmp_path: Path) -> None:
    wheel = build_wheel(source, tmp_path, native=True)
    assert "-py3-none-linux" in Path(str(wheel.filename)).name
    names = set(wheel.namelist())
    assert LIBRARY in names
    assert "blip_fast/py.typed" in names
    assert {f"blip_fast/kernels/{path}" for path in python_files(ROOT / "kernels")} <= names
    assert {f"blip_fast/{path}" for path in python_files(ROOT / "blip_fast")} <= names
    foreign = {name.split("/")[0] for name in names} - {"blip_fast", "blip_fast-0.1.0.dist-info"}
    assert not foreign
    assert str(source).encode() not in wheel.read(LIBRARY)  # no path of the building machine


def test_pure_wheel_has_no_library(source: Path, tmp_path: Path) -> None:
    wheel = build_wheel(source, tmp_path, native=False)
    assert Path(str(wheel.filename)).name == "blip_fast-0.1.0-py3-none-any.whl"
    assert not [name for name in wheel.namelist() if name.endswith(".so")]
    assert "blip_fast/kernels/__init__.py" in wheel.namelist()
    entry_points = wheel.read("blip_fast-0.1.0.dist-info/entry_points.txt").decode()
    assert "blip-fast = blip_fast.cli:program" in entry_points


def test_missing_torch_is_named_with_both_remedies(source: Path, tmp_path: Path) -> None:
    hide_torch = "import sys\nsys.modules['torch'] = None"
    done = run_backend(f"build_wheel({str(tmp_path)!r})", source, native=True, before=hide_torch)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert "torch" in message
    assert "--no-build-isolation" in message
    assert "BLIP_FAST_NATIVE=0" in message


def test_an_unknown_wish_for_cuda_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLIP_FAST_CUDA", "yes")
    done = run_backend(f"build_wheel({str(tmp_path)!r})", source, native=True)
    assert done.returncode != 0
    assert "BLIP_FAST_CUDA is 'yes'; set it to 1 or 0" in done.stderr
