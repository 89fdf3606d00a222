"""CapFilt with the stub in processes of its own, to be killed: `python capfilt_job.py '{json}'`.

One process imports everything and forks the others, so that fifty of them take seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capfilt_stub import StubBlip

from blip_fast.capfilt import CapFiltOptions, run_capfilt

# Calls that change what another process sees of the output folder.
STEPS = ("replace", "fsync", "link", "unlink", "mkdir", "rmdir", "utime")


def run(source: str, output: str, slow: float = 0.0, **settings: Any) -> None:
    model = StubBlip(delay=slow)
    options = CapFiltOptions(batch_size=2, shard_size=4, gallery=5)
    run_capfilt(source, output, model, model, dataclasses.replace(options, **settings))


def die_at(step: int) -> None:
    """Have this process killed by its own hand just before the so-many-th of STEPS."""
    count = 0

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **more)

        return wrapper

    for name in STEPS:
        setattr(os, name, guarded(getattr(os, name)))


def forked(work: Callable[[], None]) -> int:
    """The process's number; it leaves with 0, or with 1 where there was an exception."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def wait(child: int) -> int:
    """Its exit code; -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_every_step(job: dict[str, Any]) -> list[int]:
    """Run again and again, each time killed one step later, until one comes through.

    Half of the processes find what the one before left, half begin anew.
    """
    import shutil

    codes: list[int] = []
    while not codes or codes[-1] == -signal.SIGKILL:
        if len(codes) % 2:
            shutil.rmtree(job["output"], ignore_errors=True)
        step = len(codes)

        def attempt(step: int = step) -> None:
            die_at(step)
            run(**job)

        codes.append(wait(forked(attempt)))
    return codes


def kill_at_random(job: dict[str, Any], times: int, longest: float, seed: int) -> list[int]:
    """Run and kill at random moments, then once to the end."""
    draw = random.Random(seed)
    codes = []
    for _ in range(times):
        child = forked(lambda: run(**job))
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        codes.append(wait(child))
    codes.append(wait(forked(lambda: run(**job))))
    return codes


def together(job: dict[str, Any]) -> list[int]:
    """Three at the same time, then one more."""
    children = [forked(lambda: run(**job)) for _ in range(3)]
    return [*map(wait, children), wait(forked(lambda: run(**job)))]


def main() -> None:
    import torch

    torch.set_num_threads(1)
    order = json.loads(sys.argv[1])
    job = order["job"]
    kinds: dict[str, Callable[[], Any]] = {
        "run": lambda: [wait(forked(lambda: run(**job)))],
        "each": lambda: [wait(forked(lambda x=x: run(**{**job, **x}))) for x in order["changes"]],
        "steps": lambda: kill_at_every_step(job),
        "random": lambda: kill_at_random(job, *order["kills"]),
        "together": lambda: together(job),
    }
    print(json.dumps(kinds[order["kind"]]()))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
