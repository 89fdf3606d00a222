"""`make gpu` as far as it can be seen without a GPU: its plan, and its races on tiny problems."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench import gpu_races as races
from bench.gpu_aims import Rows, aims


def test_the_plan_fits_into_nine_minutes_and_names_every_room(tmp_path: Path) -> None:
    planned = gpu.steps("cuda", tmp_path / "rows.csv", small=False)
    assert sum(step.seconds for step in planned) <= gpu.LIMIT < 9 * 60
    gate = next(step for step in planned if step.name == "gate")
    files = {Path(command[-1]) for command in gate.commands}
    rooms = Path(__file__).parents[1] / "kernels"
    assert files == {path for f in ("triton", "cuda") for path in (rooms / f).glob("test_*.py")}


def test_races_run_and_tell_what_is_absent(tmp_path: Path) -> None:
    races.run(races.SMALL, torch.device("cpu"), 0.0, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["% of probe"] for row in rows[:2]] == ["100.0", "100.0"]
    cases = {row["case"] for row in rows if row["contender"] == races.OURS}
    assert len(cases) == 21
    assert {f"{name}," for name in ("patchify", "beam_step", "sample", "decode_attention")} <= {
        case.split(" ")[0] for case in cases
    }
    found = gpu.aims_of(tmp_path / "rows.csv")
    assert len(found) == 11 and [row["case"] for row in found] == [r["case"] for r in rows[-11:]]
    words = {aim["note"].partition(":")[0] for aim in found}
    assert "not measured" in words and words <= {"met", "NOT MET", "not measured"}
    for row in rows[2:]:
        assert bool(row["median ms"]) != bool(row["note"]), row
    notes = {row["contender"]: row["note"] for row in rows if row["note"]}
    assert "flash_attn" in notes["flash-attn"]
    assert "GPU only" in notes["FlexAttention"]
    assert "decode_attention cannot run 'cuda' on cpu" in notes["blip_fast, cuda"]


def test_aims_are_judged() -> None:
    def row(case: str, contender: str, **numbers: str) -> dict[str, str]:
        return {"case": case, "contender": contender, "median ms": "1", **numbers}

    head = "linear_cross_entropy with gradient"
    rows = Rows([
        row("attention, 577 tokens", "blip_fast", ratio="1.00"),
        row("attention, 577 tokens", "torch SDPA, flash", ratio="1.20"),
        row("attention, 577 tokens", "flash-attn", ratio="0.90"),
        row("attention, 577 tokens", "xformers", ratio="0.50"),
        {"case": "attention, 577 tokens", "contender": "flash-attn 3", "note": "is not there"},
        row(head, "blip_fast", **{"peak MB": "9", "ratio": "1"}),
        row(head, "torch.compile, logits stored", **{"peak MB": "100", "ratio": "1.4"}),
    ])  # fmt: skip
    judged = [aim.row(rows) for aim in aims(577)]
    found = {row["case"]: (row.get("rate"), row["note"].partition(":")[0]) for row in judged}
    assert found["aim: linear_cross_entropy: speed over torch.compile"] == ("1.4", "met")
    assert found["aim: linear_cross_entropy: memory over torch.compile's"] == ("0.09", "met")
    best = "speed over the best of flash, cuDNN and flash-attn"
    assert found[f"aim: attention, 577 tokens: {best}"] == ("0.9", "NOT MET")
    gradient = found[f"aim: attention with gradient, 577 tokens: {best}"]
    assert gradient == (None, "not measured")


def test_a_peer_that_answers_wrongly_is_an_error() -> None:
    q = torch.randn(3)
    wrong = {"wrong": lambda: lambda: q + 1}
    entry = races.entry("a case", lambda: q, wrong, 1.0, "byte", lambda f: f)
    with pytest.raises(ValueError, match="wrong differs"):
        races.race(entry.case, 0.0)


def test_steps_are_judged_and_stopped(tmp_path: Path) -> None:
    good, bad = ["true"], ["false"]
    assert gpu.run(gpu.Step("good", [good, good], 60.0), tmp_path, 60.0).passed
    outcome = gpu.run(gpu.Step("bad", [good, bad], 60.0), tmp_path, 60.0)
    assert not outcome.passed and outcome.note == "bad_1 ends with 1"
    outcome = gpu.run(gpu.Step("endless", [["cat", "/dev/zero"]], 0.1), tmp_path, 60.0)
    assert not outcome.passed and "stopped" in outcome.note


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main(["--out", str(tmp_path)])


def test_dry_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(gpu, "run", lambda step, *_: gpu.Outcome(step.name, True, 0.0, ""))
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0
    assert "gate: " in capsys.readouterr().out
    (path,) = tmp_path.glob("gpu_*.json")
    summary = json.loads(path.read_text())
    assert summary["steps"][0]["name"] == "races"
    assert summary["CUDA rooms"] in ("libblip_fast_cuda.so", "not built")
