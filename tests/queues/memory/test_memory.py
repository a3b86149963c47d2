"""The broker in memory, beyond the conformance suite."""

from __future__ import annotations

from typing import Any

import anyio
from support.brokers.jobs import claim_one, claimed, message, settle

from background.queues._states import JobState
from background.queues.memory import MemoryBroker
from background.testing import virtual_time


def test_created_outside_event_loop(anyio_backend: Any) -> None:
    """A broker can be created without an event loop, as modules do on import."""
    broker = MemoryBroker()

    async def main() -> list[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(broker.wait_for_work, ["q"], 1000)
            await anyio.sleep(1)
            await broker.enqueue([message()])
        return await claimed(broker)

    name, options = anyio_backend
    assert anyio.run(main, backend=name, backend_options=options) == ["one"]


def test_waiters_wake_for_own_job(anyio_backend: Any) -> None:
    """The end of a job wakes only the waiters for this job."""
    waits = 0

    class Counting(MemoryBroker):
        async def _wait(self, event: anyio.Event) -> None:
            nonlocal waits
            waits += 1
            await super()._wait(event)

    async def main() -> None:
        broker = Counting()
        await broker.enqueue([message(str(number)) for number in range(100)])
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(broker.wait, str(number), 1000)
            await anyio.wait_all_tasks_blocked()
            for _ in range(100):
                assert await settle(broker, await claim_one(broker), JobState.SUCCEEDED)
                await anyio.wait_all_tasks_blocked()

    name, options = anyio_backend
    anyio.run(main, backend=name, backend_options=options)
    assert 100 <= waits < 300  # it would be 5,000 if every end of a job woke every waiter


async def test_purge_deletes_timers() -> None:
    """A purged job leaves no timer behind."""
    broker = MemoryBroker()
    await broker.enqueue([message("a", expires=9999), message("b", expires=9999)])
    await broker.cancel("a")
    assert await broker.purge() == 1
    assert {id for _, _, id in broker._jobs._changing} == {"b"}


def test_waiter_wakes_at_new_due_time() -> None:
    """A waiter for a job is woken at a due time that was set while it waited."""

    async def main() -> JobState | None:
        broker = MemoryBroker()
        await broker.enqueue([message("a"), message("b", handler=None, depends_on=("a",), delay=5)])
        claim = await claim_one(broker)
        ended: list[JobState] = []

        async def wait() -> None:
            job = await broker.wait("b", 20)
            assert job is not None
            ended.append(job.state)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(1)
            await settle(broker, claim, JobState.SUCCEEDED)
            await anyio.sleep(6)
            assert ended == [JobState.SUCCEEDED]
        return ended[0]

    name, options = virtual_time("asyncio")
    assert anyio.run(main, backend=name, backend_options=options) is JobState.SUCCEEDED


def test_jobs_in_next_event_loop() -> None:
    """Due times and expiry hold in the next event loop, whose clock began at another time."""
    broker = MemoryBroker()

    async def enqueue() -> None:
        await broker.open()
        await anyio.sleep(1000)
        await broker.enqueue([message("a", delay=5), message("b", expires=5)])
        await broker.wait_for_work(["q"], 0)
        await broker.wait_for_work(["empty"], 1)
        await broker.close()

    async def claim_all() -> None:
        await broker.open()
        assert await claimed(broker) == ["b"]
        began = anyio.current_time()
        await broker.wait_for_work(["q"], 100)
        assert anyio.current_time() - began == 4
        assert await claimed(broker) == ["a"]

    for main, backend in ((enqueue, "asyncio"), (claim_all, "trio")):
        name, options = virtual_time(backend)  # type: ignore[arg-type]
        anyio.run(main, backend=name, backend_options=options)
