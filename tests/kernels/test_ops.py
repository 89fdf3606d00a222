"""The choice of implementations: asked for by name it runs or raises, never anything else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from blip_fast import kernels
from blip_fast.kernels import _ops

CPU = torch.device("cpu")


def test_every_room_can_say_what_it_runs_and_why() -> None:
    choices = kernels.choices(CPU, torch.float32)
    assert len(choices) == 10
    assert all(c.implementation and c.why for c in choices)


def test_a_missing_implementation_raises() -> None:
    x = torch.randn(2, 4)
    with (
        kernels.use("triton"),
        pytest.raises(ValueError, match="linear has no implementation 'triton'"),
    ):
        kernels.linear(x, torch.randn(3, 4))
    assert kernels.linear(x, torch.randn(3, 4)).shape == (2, 3)


def test_an_implementation_for_another_device_raises() -> None:
    room = _ops._rooms["add_layernorm"]
    with kernels.use("native", "add_layernorm"), pytest.raises(ValueError, match="for the CPU"):
        room.choose(torch.empty(1, device="meta"))


def test_triton_asked_for_on_a_cpu_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.zeros(1, 2, 3, 1, 64)
    monkeypatch.setattr(_ops, "TRITON_INTERPRETED", False)
    with kernels.use("triton", "attention"), pytest.raises(ValueError, match="it is for CUDA"):
        kernels.attention(qkv)
    assert _ops._rooms["attention"].choose(qkv) != "triton"


def test_interpreted_it_runs_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.zeros(1, 2, 3, 1, 64)
    monkeypatch.setattr(_ops, "TRITON_INTERPRETED", True)
    monkeypatch.setattr(_ops, "TRITON_INSTALLED", True)
    assert _ops._rooms["attention"].choose(qkv) != "triton"
    with kernels.use("triton", "attention"):
        assert _ops._rooms["attention"].choose(qkv) == "triton"
        monkeypatch.setattr(_ops, "TRITON_INSTALLED", False)
        with pytest.raises(ValueError, match="triton is not installed"):
            kernels.attention(qkv)


def test_an_obstacle_of_the_call_raises_or_is_avoided() -> None:
    room, x = _ops._rooms["attention"], torch.zeros(1)
    assert room.choose(x, obstacles={"native": "too odd"}) == "reference"
    if _ops.NATIVE_LOADED:
        with kernels.use("native"), pytest.raises(ValueError, match="'native' on cpu: too odd"):
            room.choose(x, obstacles={"native": "too odd"})


def test_an_unknown_room_raises() -> None:
    with (
        pytest.raises(ValueError, match="there is no room attend"),
        kernels.use("native", "attend"),
    ):
        pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("reference", {"add_layernorm": "reference", "contrastive": "reference"}),
        ("add_layernorm=reference", {"add_layernorm": "reference", "contrastive": "chunked"}),
        ("contrastive=reference, linear=reference", {"contrastive": "reference"}),
    ],
)
def test_the_value_of_the_environment_variable(
    value: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ops, "_forced", {})
    _ops.read_environment(value)
    found = {choice.room: choice.implementation for choice in kernels.choices(CPU, torch.float32)}
    assert {room: found[room] for room in expected} == expected


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("linear=cutlass", "has no implementation 'cutlass'"),
        ("lineer=reference", "there is no room lineer"),
    ],
)
def test_a_wrong_value_of_the_environment_variable_raises(
    value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ops, "_forced", {})
    with pytest.raises(ValueError, match=complaint):
        _ops.read_environment(value)
        kernels.choices(CPU, torch.float32)


def test_the_environment_variable_is_read() -> None:
    code = (
        "import torch, blip_fast.kernels as k;"
        "c = {x.room: x.implementation for x in k.choices(torch.device('cpu'), torch.float32)};"
        "print(c['add_layernorm'], c['contrastive'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "BLIP_FAST_KERNELS": "add_layernorm=reference"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["reference", "chunked"]


def test_a_dtype_that_an_implementation_lacks_goes_to_the_reference_or_raises() -> None:
    x = torch.randn(2, 8, dtype=torch.float64)
    weight, bias = torch.randn(2, 8, dtype=torch.float64)
    assert kernels.layernorm(x, weight, bias, 1e-6).dtype == torch.float64
    if _ops.NATIVE_LOADED:
        with (
            kernels.use("native", "add_layernorm"),
            pytest.raises(ValueError, match="it computes float32, bfloat16, float16, not float64"),
        ):
            kernels.layernorm(x, weight, bias, 1e-6)
