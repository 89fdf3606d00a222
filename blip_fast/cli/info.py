"""`blip-fast info`: versions, processor, devices, and what each room of the kernels will run."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch

import blip_fast
from blip_fast.cli import common
from blip_fast.kernels import _ops, choices
from blip_fast.tasks.load import default_device, default_dtype

# What decides the speed of matrix products: names as Linux gives them.
_X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
_ARM_FLAGS = ("asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2")


def add_parser(subparsers: Any) -> None:
    parser = common.verb(
        subparsers, "info", "Print versions, devices, and which kernels will run, and why."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    for title, lines in (
        ("versions", _versions()),
        ("processor", _processor()),
        ("devices", _devices()),
        ("default", _default()),
    ):
        _print_block(title, lines)
    for device in _all_devices():
        _print_choices(device)
    return 0


def _print_block(title: str, lines: list[str]) -> None:
    print(f"{title:<11}{lines[0]}", *(f"{'':<11}{line}" for line in lines[1:]), sep="\n")


def _versions() -> list[str]:
    return [
        f"blip_fast {blip_fast.__version__}",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
        platform.platform(),
    ]


def _processor() -> list[str]:
    described = cpuinfo()
    name = described.get("model name") or platform.processor() or platform.machine()
    present = described.get("flags", described.get("Features", "")).split()
    features = [flag for flag in (*_X86_FLAGS, *_ARM_FLAGS) if flag in present]
    library = "loaded, runs " + torch.ops.blip_fast.cpu_isa() if _ops.NATIVE_LOADED else "not built"
    return [
        f"{name}, {os.cpu_count()} logical cores, torch uses {torch.get_num_threads()} threads",
        f"features: {' '.join(features) or 'none that matter, or not told by this system'}",
        f"torch compiles for: {torch.backends.cpu.get_cpu_capability()}",
        f"compiled rooms (libblip_fast_cpu.so): {library}",
    ]


def cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; nothing on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in fields}


def _all_devices() -> list[torch.device]:
    """The processor, and one GPU for all: rooms choose by the type of device."""
    gpus = [torch.device("cuda")] if torch.cuda.is_available() else []
    return [torch.device("cpu"), *gpus]


def _devices() -> list[str]:
    lines = ["cpu"]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        lines.append(
            f"cuda:{number} {facts.name}, {facts.total_memory / 2**30:.0f} GiB, "
            f"compute capability {facts.major}.{facts.minor}"
        )
    return lines


def _default() -> list[str]:
    device = default_device()
    dtype = default_dtype(device)
    reasons = {
        torch.bfloat16: "it multiplies bfloat16 in hardware",
        torch.float16: "it multiplies float16 in hardware, bfloat16 it does not",
        torch.float32: "it has no hardware for bfloat16 (AMX or AVX512-BF16)",
    }
    name = str(dtype).removeprefix("torch.")
    return [f"{name} on {device.type}: {reasons[dtype]}"]


def _print_choices(device: torch.device) -> None:
    print(f"\nrooms on {device.type}")
    try:
        chosen = choices(device, default_dtype(device))
    except ValueError as error:  # one that was asked for by name and cannot run
        print(f"  {error}")
        return
    for choice in chosen:
        print(f"  {choice.room:<22}{choice.implementation:<11}{choice.why}")
