"""`make gpu`: all that needs a GPU, in one command under nine minutes, with results as files.

The machine needs torch with CUDA, Triton and pytest, and no network. In turn: the CUDA rooms are
built, where nvcc and cmake are, else the library of an earlier build serves; the gate of every
room on the device, each room in a process of its own, all at once; compute-sanitizer on small
cases, where it is installed; the model on the device against the CPU; and alone on the GPU the
races. What fails is told at the end, and the exit status is 1, but the steps after it still run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from bench.machine import git_sha, machine_kind, model_name
from blip_fast.kernels._libraries import cuda_library

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
LIMIT = 530.0  # seconds in all
# Tools lie beside this Python, whose environment need not be active, or on PATH.
TOOLS = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
# Not `-m pytest`, which would put ./kernels on the path as a package of its own.
PYTEST = "import sys; sys.path.remove(''); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
# One case of each dtype is enough for the sanitizer, which slows kernels a hundredfold.
SANITIZED = "test_forward and (bfloat16 or empty or no_) or test_gradients and bfloat16"
# The CUDA rooms alone, and nothing where there is no nvcc: $0 is this Python.
BUILD = """
if command -v ninja; then export CMAKE_GENERATOR=Ninja; fi
cmake -S . -B build/cuda -DPython_EXECUTABLE="$0"
cmake --build build/cuda --target help | grep -q blip_fast_cuda || exit 0
cmake --build build/cuda --target blip_fast_cuda
mkdir -p blip_fast/lib && cp build/cuda/libblip_fast_cuda.so blip_fast/lib/
"""


@dataclass(frozen=True)
class Step:
    """Commands that run at the same time, and the seconds after which they are stopped."""

    name: str
    commands: list[list[str]]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    name: str
    passed: bool
    seconds: float
    note: str


def steps(device: str, out: Path, small: bool) -> list[Step]:
    """What is done, in order. On a machine without a GPU the races alone can run, small ones."""
    python = sys.executable
    races = [python, "-m", "bench.gpu_races", "--device", device, "--out", str(out)]
    races += ["--small", "--seconds", "0"] if small else []
    folders = ("triton", "cuda")
    tests = [p for f in folders for p in sorted((ROOT / "tests/kernels" / f).glob("test_*.py"))]
    pytest = [python, "-c", PYTEST, "-p", "no:cacheprovider"]
    gate = [[*pytest, "-m", "gpu", "-rfE", str(path)] for path in tests]
    model = [[*pytest, "-m", "gpu", "-rfE", str(ROOT / "tests" / "gpu")]]
    planned = [Step("gate", gate, 145.0), Step("model", model, 80.0)]
    if shutil.which("cmake", path=TOOLS):
        planned.insert(0, Step("build", [["sh", "-ec", BUILD, python]], 45.0))
    if tool := shutil.which("compute-sanitizer", path=TOOLS):
        small_tests = [*pytest, "-x", "-m", "gpu", "-k", SANITIZED]
        watched = [[tool, "--error-exitcode", "1", *small_tests, str(path)] for path in tests]
        planned.append(Step("sanitizer", watched, 75.0))
    return [*planned, Step("races", [races], 185.0)]


def run(step: Step, logs: Path, seconds: float) -> Outcome:
    """Run a step's commands side by side; each writes a log."""
    begin = time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    running = []
    for number, command in enumerate(step.commands):
        with (logs / f"{step.name}_{number}.log").open("wb") as log:
            running.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": TOOLS},
                )
            )
    notes = []
    for number, process in enumerate(running):
        left = max(0.0, begin + min(step.seconds, seconds) - time.monotonic())
        try:
            status = process.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            notes.append(f"{step.name}_{number} was stopped after {step.seconds:.0f} s")
        else:
            if status:
                notes.append(f"{step.name}_{number} ends with {status}")
    return Outcome(step.name, not notes, time.monotonic() - begin, "; ".join(notes))


def aims_of(races: Path) -> list[dict[str, str]]:
    """The aims at the end of the races' rows, with what was measured; none without such a file."""
    if not races.exists():
        return []
    with races.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["case"].startswith("aim: ")]
    return [{name: row[name] for name in ("case", "rate", "note")} for row in rows]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the steps, and race tiny problems on the CPU"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --dry-run shows what would be done")
    device = torch.device("cpu" if args.dry_run else "cuda")
    stem = f"gpu_{machine_kind(device)}_{date.today():%Y-%m-%d}"
    planned = steps(device.type, args.out / f"{stem}.csv", args.dry_run)
    end, outcomes = time.monotonic() + LIMIT, []
    for step in planned:
        print(f"{step.name}: {len(step.commands)} processes, at most {step.seconds:.0f} s")
        if args.dry_run and step.name != "races":
            print(*(" ".join(command) for command in step.commands), sep="\n")
            continue
        outcome = run(step, args.out / "logs", end - time.monotonic())
        word = "passed" if outcome.passed else f"FAILED: {outcome.note}"
        print(f"{step.name}: {word}, {outcome.seconds:.0f} s", flush=True)
        outcomes.append(outcome)
    aims = aims_of(args.out / f"{stem}.csv")
    for aim in aims:
        print(f"{aim['case']:80} {aim['rate']:>8}  {aim['note']}")
    summary = {
        "git sha": git_sha(),
        "machine": model_name(device),
        "torch": torch.__version__,
        "CUDA rooms": cuda_library().name if cuda_library().exists() else "not built",
        "steps": [asdict(outcome) for outcome in outcomes],
        "aims": aims,
    }
    print(f"CUDA rooms: {summary['CUDA rooms']}")
    (args.out / f"{stem}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
