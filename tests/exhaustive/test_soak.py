"""A second of soak.py on each backend, and what it would notice."""

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
NOTHING = ["lost", "doubled", "out of order", "other faults"]
LEFT = ["tasks left", "threads left", "descriptors left", "managers left"]


@pytest.fixture(scope="module")
def soaking() -> Iterator[dict[str, Process]]:
    """All backends at once, as much of the time is spent waiting."""
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
def test_nothing_is_lost_in_a_second(soaking: dict[str, Process], backend: str) -> None:
    process = soaking[backend]
    status = process.wait()
    figures = dict(re.findall(r"^(.+) = (-?[\d.]+)$", process.output, re.M))
    assert {name: figures[name] for name in NOTHING + LEFT} == dict.fromkeys(NOTHING + LEFT, "0")
    assert figures["ends"] == figures["submissions"]
    assert int(figures["submissions"]) > 100
    assert int(figures["managers closed"]) > 3
    assert (status, process.lines[-1]) == (0, "passed")


def samples(bytes_a_task: float, noise: float = 0.0) -> list[tuple[int, int]]:
    return [
        (100 * n, 1_000_000 + int(100 * n * bytes_a_task + random.random() * noise))
        for n in range(200)
    ]


def test_a_leak_is_noticed() -> None:
    assert grows(samples(100))
    assert grows(samples(2 * LEAK, noise=200_000))
    assert growth(samples(100))[1] == pytest.approx(100)


def test_what_comes_and_goes_is_no_leak() -> None:
    assert not grows(samples(0, noise=500_000))
    assert not grows(samples(10))
    assert not grows(samples(100)[:4])
    assert not grows([])


async def test_a_ledger_balances() -> None:
    totals = Totals()
    ledger = Ledger(totals)
    async with Manager(observers=[ledger]) as manager:
        ledger.accepted.append(manager.run(checkpoint))
        ledger.accepted.append(manager.run_task(Task(checkpoint, kind=TaskKind.LOOP)))
        await manager.stop_loops()
    ledger.balance()
    assert (totals.lost, totals.doubled, totals.disordered, totals.faults) == (0, 0, 0, [])


async def test_a_ledger_notices_what_is_lost() -> None:
    totals = Totals()
    ledger = Ledger(totals)
    async with Manager(observers=[ledger]) as manager:
        ledger.accepted.append(manager.after(3600, checkpoint))
        ledger.balance()
        await manager.close()
    assert totals.lost > 0


@pytest.mark.parametrize("twice", ["on_task_added", "on_task_started", "on_task_succeeded"])
async def test_a_ledger_notices_what_is_told_twice(twice: str) -> None:
    totals = Totals()
    ledger = Ledger(totals)
    told = getattr(ledger, twice)

    def tell_twice(event: object) -> None:
        told(event)
        told(event)

    setattr(ledger, twice, tell_twice)
    async with Manager(observers=[ledger]) as manager:
        handle = manager.run(checkpoint)
        ledger.accepted.append(handle)
        await handle
    ledger.balance()
    assert totals.doubled + totals.disordered > 0
    assert totals.faults
