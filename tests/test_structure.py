"""The shape of the tree: imports flow one way, files stay small, every room has its mirrors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A file imports from lower floors, or from its own folder.
FLOORS = {
    "kernels": 1,
    "config": 1,
    "text": 2,
    "images": 2,
    "med": 3,
    "data": 3,
    "decoding": 4,
    "train": 4,
    "tasks": 5,
    "evaluate": 6,
    "capfilt": 6,
    "scenes": 7,
    "cli": 8,
}
MAX_LINES = 400
MAX_WIDTH = 100


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            inside_link = any(p.is_symlink() for p in path.parents if p != ROOT)
            if path.suffix in {".py", ".cpp", ".cu", ".h", ".cuh"} and not inside_link:
                yield path


def room_of(module: str) -> str:
    """`blip_fast.med.vision` -> `med`; the package itself -> ``."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: import by the full name, not relative"
            if node.module == "blip_fast":
                yield from (f"blip_fast.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def library_files() -> list[Path]:
    return [*sources("blip_fast"), *sources("kernels")]


@pytest.mark.parametrize("path", library_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT).with_suffix("")
    own = relative.parts[0] if relative.parts[0] == "kernels" else relative.parts[1]
    if own in ("__init__", "__main__"):
        return  # the public names, gathered from every floor
    assert own in FLOORS, f"{path} stands on no floor; add it to FLOORS and to the design"
    for module in imported(path):
        assert not module.startswith("kernels"), f"{path}: kernels is blip_fast.kernels"
        if not module.startswith("blip_fast"):
            continue
        other = room_of(module)
        if other not in FLOORS:  # a name of the package itself, as its version
            assert FLOORS[own] == max(FLOORS.values()), f"{path} imports the package from below"
            continue
        assert other == own or FLOORS[other] < FLOORS[own], (
            f"{path.relative_to(ROOT)} (floor {FLOORS[own]}) imports {module} "
            f"(floor {FLOORS[other]})"
        )


@pytest.mark.parametrize(
    "path",
    [*library_files(), *sources("csrc", "tests", "bench"), ROOT / "setup.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_are_small(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, f"{path} has {len(lines)} lines; at most {MAX_LINES}"
    wide = [n for n, line in enumerate(lines, 1) if len(line) > MAX_WIDTH]
    assert not wide, f"{path}: lines {wide} are wider than {MAX_WIDTH} columns"


ROOMS = sorted(p.name for p in (ROOT / "kernels").iterdir() if (p / "__init__.py").exists())


def test_there_are_ten_rooms() -> None:
    assert len(ROOMS) == 10


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_mirrors(room: str) -> None:
    mirrors = [
        f"kernels/{room}/reference.py",
        f"tests/kernels/test_{room}.py",
        f"bench/bench_{room}.py",
    ]
    missing = [m for m in mirrors if not (ROOT / m).is_file()]
    assert not missing, f"the room {room} lacks {', '.join(missing)}"


def test_native_sources_belong_to_rooms() -> None:
    stems = {p.stem for p in (ROOT / "csrc").glob("c*/*.c*")}
    assert {stem.removesuffix("_backward") for stem in stems} <= set(ROOMS) | {"isa", "tile"}


def test_import_does_no_work() -> None:
    """Importing the package starts no device, reads no image library and no table library."""
    code = (
        "import sys, blip_fast, torch;"
        "assert not torch.cuda.is_initialized();"
        "heavy = {'transformers', 'pyarrow', 'jinja2', 'fsspec', 'huggingface_hub', 'triton'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
