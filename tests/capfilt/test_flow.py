"""Stages overlap, queues are bounded, and the slow one is named."""

from __future__ import annotations

import threading
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from blip_fast.capfilt.crew import Crew
from blip_fast.capfilt.flow import Clock, CrewStage, Flow, Stage, StageFailed, slowest


def batches(number: int, made: list[int] | None = None) -> Any:
    for n in range(number):
        if made is not None:
            made.append(n)
        yield SimpleNamespace(n=n, items=[[n, i] for i in range(3)])


def pass_on(work: Any) -> Stage:
    return Stage([(Clock("work", "work"), work)])


def test_batches_come_through_in_order_and_every_item_is_worked_on() -> None:
    crew, seen = Crew("squaring", 4, 10.0), []

    def settle(item: list[int], result: int) -> None:
        item.append(result)

    stage = CrewStage(Clock("square", "square"), crew, lambda item: item[1] ** 2, settle)
    flow = Flow(batches(20), Clock("open", "open"), [stage, pass_on(lambda b: seen.append(b.n))])
    done = list(flow.run(Clock("sink", "sink")))
    assert [batch.n for batch in done] == seen == list(range(20))
    assert all(item[2] == item[1] ** 2 for batch in done for item in batch.items)


def test_stages_overlap() -> None:
    """Two stages that each wait for the other to have begun the next batch."""
    meeting = threading.Barrier(2, timeout=20)

    # the first is at 2 when the second is at 1
    first = pass_on(lambda batch: meeting.wait() if batch.n == 2 else None)
    second = pass_on(lambda batch: meeting.wait() if batch.n == 1 else None)
    flow = Flow(batches(5), Clock("open", "open"), [first, second])
    assert len(list(flow.run(Clock("sink", "sink")))) == 5


def test_a_stage_that_stands_still_stops_the_source() -> None:
    made: list[int] = []
    gate, waiting = threading.Event(), threading.Event()

    def wait(batch: Any) -> None:
        waiting.set()
        gate.wait()

    flow = Flow(batches(1000, made), Clock("open", "open"), [pass_on(wait)])
    with closing(flow.run(Clock("sink", "sink"))) as results:
        taker = threading.Thread(target=lambda: next(results))
        taker.start()
        waiting.wait()
        gate.wait(0.2)  # the source may go on for a while, up to what the queues hold
        assert len(made) <= 5
        gate.set()
        taker.join()
    assert len(made) < 20


def test_an_error_in_a_stage_ends_the_flow_and_names_it() -> None:
    def fail(batch: Any) -> None:
        if batch.n == 3:
            raise KeyError("x")

    flow = Flow(batches(1000), Clock("open", "open"), [pass_on(fail), pass_on(lambda b: None)])
    done = []
    with pytest.raises(StageFailed, match="stage 'work' failed at .*n=3.*KeyError: 'x'"):
        done += [batch.n for batch in flow.run(Clock("sink", "sink"))]
    assert threading.active_count() < 20 and done == sorted(done)


def test_an_error_of_the_source_comes_as_it_is() -> None:
    def broken() -> Any:
        yield from batches(2)
        raise FileNotFoundError("gone")

    flow = Flow(broken(), Clock("open", "open"), [pass_on(lambda b: None)])
    with pytest.raises(FileNotFoundError, match="gone"):
        list(flow.run(Clock("sink", "sink")))


def test_leaving_early_ends_all_threads() -> None:
    before = threading.active_count()
    crew = Crew("idling", 3, 10.0)
    stage = CrewStage(Clock("a", "a"), crew, lambda item: item, lambda item, result: None)
    flow = Flow(batches(1000), Clock("open", "open"), [stage, pass_on(lambda b: None)])
    with closing(flow.run(Clock("sink", "sink"))) as results:
        next(results)
    crew.close()
    for thread in threading.enumerate():
        if thread.name == "capfilt idling":
            thread.join(10)
    assert threading.active_count() == before


def test_hanging_tasks_are_given_up_and_their_workers_replaced() -> None:
    """More of them than there are workers."""
    ever = threading.Event()
    crew = Crew("waiting", 1, 1.0)
    hung = [crew.submit(lambda _: ever.wait(), n) for n in range(2)]
    fine = crew.submit(lambda x: x + 1, 1)
    assert all(isinstance(crew.wait(task), TimeoutError) for task in hung)
    assert crew.wait(fine) == 2
    ever.set()
    assert isinstance(crew.wait(hung[0]), TimeoutError)  # what comes late is not taken
    crew.close()


def test_an_exception_is_a_result() -> None:
    crew = Crew("failing", 2, 10.0)
    assert isinstance(crew.wait(crew.submit(int, "x")), ValueError)
    assert crew.wait(crew.submit(int, "7")) == 7
    crew.close()


def test_the_slowest_is_the_longest_part_of_the_longest_lane() -> None:
    clocks = [
        Clock("decode", "decode", busy=5.0),
        Clock("captioner", "cpu", busy=4.0),
        Clock("filter", "cpu", busy=3.0),
    ]
    assert slowest(clocks) == "captioner"
    assert slowest(clocks[:2]) == "decode"
