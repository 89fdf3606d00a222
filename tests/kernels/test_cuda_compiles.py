"""The CUDA rooms compile for the GPUs of the day, as the build compiles them, and without spills.

Without a GPU, for A100 (sm_80), H100 and H200 (sm_90a), B200 (sm_100a). nvcc is looked for as
CMakeLists.txt does: on PATH, in CUDA_HOME, among the packages of this environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80", "sm_90a", "sm_100a"}
# What only torch with CUDA has. Beside it the library may need torch's CPU part, C and C++.
OF_TORCH_CUDA = {
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
}
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def _tool(name: str) -> str | None:
    """Beside this Python, or on PATH."""
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    return shutil.which(name, path=os.pathsep.join(folders))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The library, and what the compilers said."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if not (cmake and ninja):
        pytest.skip("there is no cmake or no ninja here; see the extra `build`")
    folder = tmp_path_factory.mktemp("cuda")
    configure = ["-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DBLIP_FAST_CUDA=ON"]
    done = subprocess.run([cmake, *configure], capture_output=True, text=True)
    if "No nvcc was found" in done.stderr:
        pytest.skip("there is no nvcc here: pip install 'blip-fast[cuda]', or set CUDA_HOME")
    assert done.returncode == 0, done.stderr
    build = [cmake, "--build", folder, "--target", "blip_fast_cuda"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "libblip_fast_cuda.so", done.stdout + done.stderr


def test_every_kernel_compiles_without_spills(built: tuple[Path, str]) -> None:
    kernels = [match.groupdict() for match in KERNEL.finditer(built[1])]
    assert {kernel["target"] for kernel in kernels} == TARGETS
    for kernel in kernels:
        print(f"{kernel['target']} {kernel['name']}: {kernel['registers']} registers")
    assert len(kernels) == len(TARGETS) * len({kernel["name"] for kernel in kernels})
    spilled = [k for k in kernels if int(k["stack"]) + int(k["stores"]) + int(k["loads"])]
    assert not spilled


def test_every_source_is_in_it(built: tuple[Path, str]) -> None:
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        names = re.findall(r'm\.impl\("([^"]+\.cuda)"', source.read_text(encoding="utf-8"))
        assert names, f"{source} registers nothing"
        for name in names:
            assert name.encode() in built[0].read_bytes()


def test_it_needs_torch_and_no_other_library(built: tuple[Path, str]) -> None:
    if not (shutil.which("readelf") and shutil.which("nm")):
        pytest.skip("there are no binutils here")
    found = subprocess.run(["readelf", "-d", built[0]], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", found.stdout))
    torch_libraries = {"libtorch_cpu.so", "libtorch_cuda.so"}
    assert torch_libraries <= needed
    system = r"lib(stdc\+\+|m|gcc_s|c|dl|rt|pthread)\.so\.\d+|ld-linux.*"
    assert all(re.fullmatch(system, name) for name in needed - torch_libraries), needed
    nm = ["nm", "-D", "--undefined-only", built[0]]
    symbols = subprocess.run(nm, capture_output=True, text=True, check=True).stdout.split()
    assert OF_TORCH_CUDA <= set(symbols)
    shims = {symbol for symbol in symbols if re.match("aoti_torch|torch_", symbol)}
    assert not {symbol for symbol in shims - OF_TORCH_CUDA if "cuda" in symbol}
    assert str(ROOT).encode() not in built[0].read_bytes()  # no path of the building machine
