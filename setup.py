"""Runs CMake as a step of `build` and names the wheel; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import SetupError

NATIVE = os.environ.get("BLIP_FAST_NATIVE", "1") != "0"
PURE = "set BLIP_FAST_NATIVE=0 to install pure Python (slower on a CPU)"
LIBRARY = "blip_fast/lib/libblip_fast_cpu.so"
# The CUDA rooms: 1 builds them or fails, 0 does not; unset, where torch has CUDA and nvcc works.
CUDA = {"1": "ON", "0": "OFF", "": "AUTO"}
CUDA_LIBRARY = "blip_fast/lib/libblip_fast_cuda.so"


def tool(name: str) -> str | None:
    """The path of `name` beside this Python (a venv need not be active) or on PATH."""
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    return shutil.which(name, path=os.pathsep.join(folders))


class BuildNative(Command):
    """`cmake --install` into the wheel's folder, or into the checkout for an editable install."""

    def initialize_options(self) -> None:
        self.build_lib = self.build_temp = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options(
            "build", ("build_lib", "build_lib"), ("build_temp", "build_temp")
        )

    def run(self) -> None:
        if not NATIVE:
            if self.editable_mode:  # a library of an earlier build would still be loaded
                Path(LIBRARY).unlink(missing_ok=True)
                Path(CUDA_LIBRARY).unlink(missing_ok=True)
            return
        if find_spec("torch") is None:
            raise SetupError(
                "the native build needs torch, which this Python cannot import: install torch "
                f"first and pass --no-build-isolation to pip, or {PURE}"
            )
        cmake, ninja = tool("cmake"), tool("ninja")
        if cmake is None:
            raise SetupError(f"the native build needs cmake: pip install cmake ninja, or {PURE}")
        folder = f"{self.build_temp}/{'ninja' if ninja else 'make'}"
        prefix = "." if self.editable_mode else self.build_lib
        # --fresh: an old cache may name tools of a build environment that is gone.
        configure = ["--fresh", "-S", ".", "-B", folder, f"-DPython_EXECUTABLE={sys.executable}"]
        cuda = os.environ.get("BLIP_FAST_CUDA", "")
        if cuda not in CUDA:
            raise SetupError(f"BLIP_FAST_CUDA is {cuda!r}; set it to 1 or 0, or unset it")
        configure.append(f"-DBLIP_FAST_CUDA={CUDA[cuda]}")
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        install = ["--install", folder, "--strip", "--prefix", prefix]
        try:
            for step in (configure, ["--build", folder, "--parallel"], install):
                subprocess.run([cmake, *step], check=True)
        except subprocess.CalledProcessError as error:
            raise SetupError(
                "the native build failed, see CMake's message above: it needs CMake 3.25 and a "
                f"C++20 compiler (Debian: apt install g++). Repair that, or {PURE}"
            ) from error

    def get_outputs(self) -> list[str]:
        built = [Path(self.build_lib, name) for name in (LIBRARY, CUDA_LIBRARY)]
        return [str(path) for path in built if path.exists()]

    def get_source_files(self) -> list[str]:
        suffixes = (".cpp", ".cu", ".cuh", ".h")
        sources = [path for path in Path("csrc").rglob("*") if path.suffix in suffixes]
        return ["CMakeLists.txt", *sorted(map(str, sources))]


class Wheel(bdist_wheel):
    """The library knows torch's stable ABI and no Python: one wheel serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class NativeDistribution(Distribution):
    """Without an `Extension`, only this tells setuptools that a wheel is for one platform."""

    def has_ext_modules(self) -> bool:
        return NATIVE


build.sub_commands = [*build.sub_commands, ("build_native", None)]
# `kernels/` is mapped, so that a checkout or an archive without symbolic links is whole, too.
rooms = ["blip_fast.kernels", *(f"blip_fast.kernels.{room}" for room in find_packages("kernels"))]
setup(
    packages=sorted({*find_packages(include=["blip_fast", "blip_fast.*"]), *rooms}),
    package_dir={"blip_fast.kernels": "kernels"},
    cmdclass={"build_native": BuildNative, "bdist_wheel": Wheel},
    distclass=NativeDistribution,
)
