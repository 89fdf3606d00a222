from __future__ import annotations

import platform
from typing import Any

import torch

import blip_fast
from blip_fast.kernels import choices, use


def test_info(run: Any, loads: list) -> None:
    code, out, _ = run("info")
    assert code == 0 and loads == []
    for version in (blip_fast.__version__, torch.__version__, platform.python_version()):
        assert version in out
    assert f"torch uses {torch.get_num_threads()} threads" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("  ")]
    for choice in choices(torch.device("cpu"), torch.bfloat16):
        assert [choice.room, choice.implementation] in [row[:2] for row in rows]
        assert choice.why in out


def test_info_says_why_a_room_cannot_run_what_was_asked(run: Any) -> None:
    with use("triton"):
        code, out, _ = run("info")
    assert code == 0 and "'triton'" in out


def test_default_dtype_comes_with_its_reason(run: Any) -> None:
    from blip_fast.tasks.load import default_device, default_dtype

    device = default_device()
    name = str(default_dtype(device)).removeprefix("torch.")
    assert f"{name} on {device.type}: " in run("info")[1]


def test_rooms_of_one_dtype_are_asked_for_that() -> None:
    """Pixels are uint8 and scores float32, whatever the model is in."""
    cpu = torch.device("cpu")
    in_float32, in_bfloat16 = choices(cpu, torch.float32), choices(cpu, torch.bfloat16)
    for room in ("patchify", "sample"):
        (first,) = (choice for choice in in_float32 if choice.room == room)
        (second,) = (choice for choice in in_bfloat16 if choice.room == room)
        assert first == second and "not bfloat16" not in second.why
