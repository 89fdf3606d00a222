from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blip_fast


def test_a_room_is_timed(run: Any) -> None:
    code, out, _ = run("bench", "add_layernorm", "--seconds", "0")
    assert code == 0
    heading, _, *rows = out.splitlines()
    assert "torch " in heading and "threads" in heading
    assert any("blip_fast" in row and "Gbyte/s" in row for row in rows)


def test_a_room_without_a_bench_is_named(run: Any) -> None:
    code, _, err = run("bench", "attend")
    assert code == 1 and "there is no bench attend; there are add_layernorm, attention" in err


def test_a_wheel_has_no_benches(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blip_fast, "__file__", str(tmp_path / "blip_fast" / "__init__.py"))
    code, _, err = run("bench", "attention")
    assert code == 1 and "a wheel does not carry them. In a checkout" in err
