"""The stopwatch: it compares before it times, times in turns, and tells a slow one from a fast."""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip_fast.cli.bench import add_options, import_bench

FOLDER = import_bench()
harness, machine, record = (import_module(f"bench.{n}") for n in ("harness", "machine", "record"))

ONES = torch.ones(8)


def case(other: Callable[[], Any], ours: Callable[[], Any] = lambda: ONES, **more: Any) -> Any:
    return harness.Case("ones", {"ours": ours, "other": other}, 32.0, "byte", **more)


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ONES * 1.001,
        lambda: torch.full((8,), torch.nan),
        lambda: torch.ones(7),
        lambda: ONES.bfloat16() * 1.01,
    ],
    ids=["value", "NaN", "shape", "bfloat16"],
)
def test_a_wrong_result_is_not_timed(wrong: Callable[[], Tensor]) -> None:
    with pytest.raises(harness.WrongResult, match="ones: other"):
        harness.race(case(wrong), 0.0)


def test_NaN_of_everyone_is_wrong() -> None:
    with pytest.raises(harness.WrongResult):
        harness.race(case(lambda: ONES * torch.nan, lambda: ONES * torch.nan), 0.0)


def test_a_result_that_goes_wrong_later_is_found() -> None:
    calls: list[int] = []

    def tires() -> Tensor:
        calls.append(1)
        return ONES if len(calls) < 4 else ONES * 2

    with pytest.raises(harness.WrongResult):
        harness.race(case(tires), 0.0)


def test_what_may_differ() -> None:
    harness.race(case(lambda: ONES * (1 + 1e-6)), 0.0)
    harness.race(case(lambda: ONES * 1.01, allowed=0.02), 0.0)
    harness.race(case(lambda: (ONES, ONES), lambda: (ONES, ONES)), 0.0)
    integers = torch.arange(8)
    with pytest.raises(harness.WrongResult, match="allowed is 0"):
        harness.race(case(lambda: integers + 1, lambda: integers), 0.0)


def test_contenders_take_turns_without_gradients() -> None:
    turns: list[str] = []

    def call(name: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            assert not torch.is_grad_enabled()
            turns.append(name)
            return ONES

        return run

    timings = harness.race(case(call("other"), call("ours")), 0.02)
    assert list(timings) == ["ours", "other"]
    rounds = list(zip(turns[::2], turns[1::2], strict=True))
    assert len(rounds) > harness.MIN_TURNS
    assert set(rounds[1:]) == {("ours", "other"), ("other", "ours")}


@pytest.mark.parametrize("cold", [False, True])
def test_a_slow_one_is_slow(cold: bool) -> None:
    def slow() -> Tensor:
        time.sleep(0.005)
        return ONES

    timings = harness.race(case(slow), 0.0, cold=cold)
    assert timings["other"].median >= 0.005 > timings["ours"].median
    assert timings["other"].low <= timings["other"].median <= timings["other"].high
    assert len(timings["ours"].turns) == harness.MIN_TURNS


def test_cases_are_made_on_the_device_from_one_seed() -> None:
    made: list[Tensor] = []

    def cases():
        for _ in range(2):
            made.append(torch.randn(3))
            yield case(lambda: ONES)

    assert len(list(harness.made_on(torch.device("meta"), cases()))) == 2
    assert [t.device.type for t in made] == ["meta", "meta"]
    list(harness.made_on(torch.device("cpu"), cases()))
    assert torch.equal(made[2], made[3])


def test_rows_are_appended_to_the_file_of_the_machine(tmp_path: Path) -> None:
    setup = record.Setup.of("linear", options("--cold"))
    for _ in range(2):
        one = case(lambda: ONES)
        assert list(setup.saved([(one, harness.race(one, 0.0))], tmp_path / "results"))
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.startswith(f"linear_{machine.machine_kind(torch.device('cpu'))}_20")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [row["contender"] for row in rows] == ["ours", "other"] * 2
    assert all(row["torch"] == torch.__version__ and row["cache"] == "cold" for row in rows)
    assert rows[0]["command"].startswith("blip-fast bench linear --seconds 2 --threads ")
    assert float(rows[0]["ratio"]) == 1.0 and rows[0]["rate"].endswith("Gbyte/s")


AMD = {"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "17"}
INTEL = {"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143"}


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({**AMD, "flags": "avx2 avx512f avx512_bf16"}, "zen4-avx512bf16"),
        ({**AMD, "model": "33", "flags": "sse avx2"}, "zen3-avx2"),
        ({**INTEL, "flags": "avx2 avx512f avx512_bf16 amx_tile amx_bf16"}, "spr-amx"),
    ],
)
def test_kinds_of_processors(facts: dict[str, str], kind: str) -> None:
    assert machine.cpu_kind(facts) == kind


def test_an_unknown_processor_has_a_kind() -> None:
    assert machine.cpu_kind({"Features": "fp asimd"}).endswith("-neon")
    assert machine.cpu_kind({}).endswith("-plain")


# The curves of cost have a form of their own, which test_cost.py reads.
RESULTS = sorted(set((FOLDER / "results").glob("*")) - set((FOLDER / "results").glob("cost_*")))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_results_can_be_read(path: Path) -> None:
    room, kind, day = path.stem.rsplit("_", 2)
    assert (FOLDER / f"bench_{room}.py").is_file() and kind and len(day) == 10
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    wanted = {"git sha", "command", "machine", "isa", "threads", "torch", "case", "contender"}
    assert all(row[column] for row in rows for column in wanted)
    assert all(float(row["20% ms"]) <= float(row["80% ms"]) for row in rows)


ROOMS = sorted(path.stem for path in FOLDER.glob("bench_*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_states_its_work_and_has_a_rival(room: str) -> None:
    cases = list(import_module(f"bench.{room}").cases())
    assert cases
    assert len({one.name for one in cases}) == len(cases), "two cases have one name"
    for one in cases:
        assert one.unit in ("byte", "FLOP") and one.amount > 0, one.name
        assert len(one.contenders) >= 2, f"{one.name} has nobody to race against"


def test_json_is_a_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    harness.run("linear", [case(lambda: ONES)], options("--json", "--seconds", "0"))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["contender"] for row in rows] == ["ours", "other"]
    assert all(row["room"] == "linear" and row["median ms"] > 0 for row in rows)
