"""A short soak test on each backend, and tests of its checks."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from anyio.lowlevel import checkpoint
from support.processes.process import Process, running
from support.soak.ledger import Ledger, Totals
from support.soak.program import LEAK, grows, growth

from background import Manager, Task, TaskKind

BACKENDS = ["asyncio", "uvloop", "trio"]
FAULTS = ["lost", "doubled", "out of order", "other faults"]
LEAKS = ["tasks left", "threads left", "descriptors left", "managers left"]


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, Process]]:
    """Run all backends at the same time, as they mostly wait."""
    seed = str(random.randrange(2**32))
    print("seed", seed)
    with ExitStack() as stack:
        yield {
            backend: stack.enter_context(
                running(
                    "-m", "support.soak", "--seconds", "1", "--seed", seed, "--backend", backend
                )
            )
            for backend in BACKENDS
        }


@pytest.mark.parametrize("backend", BACKENDS)
def test_soak(processes: dict[str, Process], backend: str) -> None:
    """A second of load loses no task and leaks nothing."""
    process = processes[backend]
    status = process.wait()
    figures = dict(re.findall(r"^(.+) = (-?[\d.]+)$", process.output, re.M))
    assert {name: figures[name] for name in FAULTS + LEAKS} == dict.fromkeys(FAULTS + LEAKS, "0")
    assert figures["ends"] == figures["submissions"]
    assert int(figures["submissions"]) > 100
    assert int(figures["managers closed"]) > 3
    assert (status, process.lines[-1]) == (0, "passed")


def samples(bytes_per_task: float, noise: float = 0.0) -> list[tuple[int, int]]:
    return [
        (100 * n, 1_000_000 + int(100 * n * bytes_per_task + random.random() * noise))
        for n in range(200)
    ]


def test_leak_detected() -> None:
    """Steady growth per task is a leak."""
    assert grows(samples(100))
    assert grows(samples(2 * LEAK, noise=200_000))
    assert growth(samples(100))[1] == pytest.approx(100)


def test_noise_is_no_leak() -> None:
    """Noise, slow growth and too few measurements are no leak."""
    assert not grows(samples(0, noise=500_000))
    assert not grows(samples(10))
    assert not grows(samples(100)[:4])
    assert not grows([])


async def test_ledger() -> None:
    """A ledger of tasks with one end each has no faults."""
    totals = Totals()
    ledger = Ledger(totals)
    async with Manager(observers=[ledger]) as manager:
        ledger.accepted.append(manager.run(checkpoint))
        ledger.accepted.append(manager.run_task(Task(checkpoint, kind=TaskKind.LOOP)))
        await manager.stop_loops()
    ledger.balance()
    assert (totals.lost, totals.doubled, totals.disordered, totals.faults) == (0, 0, 0, [])


async def test_ledger_lost_end() -> None:
    """A ledger reports a task without an end."""
    totals = Totals()
    ledger = Ledger(totals)
    async with Manager(observers=[ledger]) as manager:
        ledger.accepted.append(manager.after(3600, checkpoint))
        ledger.balance()
        await manager.close()
    assert totals.lost > 0


@pytest.mark.parametrize("hook", ["on_task_added", "on_task_started", "on_task_succeeded"])
async def test_ledger_repeated_event(hook: str) -> None:
    """A ledger reports an event that is emitted twice."""
    totals = Totals()
    ledger = Ledger(totals)
    call = getattr(ledger, hook)

    def call_twice(event: object) -> None:
        call(event)
        call(event)

    setattr(ledger, hook, call_twice)
    async with Manager(observers=[ledger]) as manager:
        handle = manager.run(checkpoint)
        ledger.accepted.append(handle)
        await handle
    ledger.balance()
    assert totals.doubled + totals.disordered > 0
    assert totals.faults
