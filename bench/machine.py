"""What a measurement must say of the machine it was taken on."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import torch

from blip_fast.cli.info import cpuinfo

# (vendor, family) to models and the name that people know their cores by; the first that holds.
_CORES: dict[tuple[str, int], list[tuple[range, str]]] = {
    ("AuthenticAMD", 23): [(range(0x30), "zen"), (range(0x30, 0x100), "zen2")],
    ("AuthenticAMD", 25): [
        (range(0x10, 0x20), "zen4"),
        (range(0x60, 0x80), "zen4"),
        (range(0xA0, 0xB0), "zen4"),
        (range(0x100), "zen3"),
    ],
    ("AuthenticAMD", 26): [(range(0x100), "zen5")],
    ("GenuineIntel", 6): [
        (range(85, 86), "skx"),
        (range(106, 107), "icx"),
        (range(108, 109), "icx"),
        (range(143, 144), "spr"),
        (range(173, 175), "gnr"),
        (range(207, 208), "emr"),
    ],
}
# The highest that decides the speed of matrix products, best first: flag of Linux, name.
_FEATURES = {
    "amx_bf16": "amx",
    "avx512_bf16": "avx512bf16",
    "avx512f": "avx512",
    "avx2": "avx2",
    "sve": "sve",
    "asimd": "neon",
}


def cpu_kind(facts: dict[str, str]) -> str:
    """The kind of a processor: its core and its best vector instructions, as zen4-avx512bf16."""
    flags = facts.get("flags", facts.get("Features", "")).split()
    feature = next((name for flag, name in _FEATURES.items() if flag in flags), "plain")
    family, model = (int(facts.get(key, "-1")) for key in ("cpu family", "model"))
    known = _CORES.get((facts.get("vendor_id", ""), family), [])
    core = next((name for models, name in known if model in models), platform.machine())
    return f"{core}-{feature}"


def machine_kind(device: torch.device) -> str:
    """The name that results of this machine are filed under: of a GPU, or of the processor."""
    if device.type == "cpu":
        return cpu_kind(cpuinfo())
    return re.sub(r"\W+", "-", torch.cuda.get_device_name(device)).strip("-").lower()


def model_name(device: torch.device) -> str:
    """What the maker calls the processor or GPU."""
    if device.type == "cpu":
        return cpuinfo().get("model name") or platform.processor() or platform.machine()
    return torch.cuda.get_device_name(device)


def cache_bytes(device: torch.device) -> int:
    """The size of the last cache before memory; 32 MiB where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [
        int(path.read_text().strip().removesuffix("K")) * 1024
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=32 * 2**20)


def git_sha() -> str:
    """The commit of the checkout, with a plus where sources differ from it; empty without git."""
    sha = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", ":/", ":!/bench/results")
    return sha + ("+" if changed else "")


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()
