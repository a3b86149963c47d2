"""Cleaning up to the end, however it is cancelled."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import anyio

from background._eventloop.interruption import run_shielded
from background._eventloop.running import current_backend
from background._eventloop.services import Services


async def test_what_is_cancelled_by_a_scope_is_seen_to_its_end() -> None:
    ends: list[float] = []

    async def clean_up() -> None:
        await anyio.sleep(5)
        ends.append(anyio.current_time())

    began = anyio.current_time()
    with anyio.move_on_after(1):
        await run_shielded(clean_up)
    assert ends == [began + 5]


def test_what_asyncio_cancels_is_begun_again() -> None:
    """The cancellation is returned."""
    begun: list[anyio.Event] = []

    async def clean_up() -> None:
        begun.append(anyio.Event())
        await begun[-1].wait()

    async def main() -> None:
        task = asyncio.create_task(run_shielded(clean_up))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert len(begun) == 2
        begun[-1].set()
        assert isinstance(await task, asyncio.CancelledError)

    anyio.run(main)
    assert len(begun) == 2


async def test_a_service_that_has_not_begun_is_stopped_as_well() -> None:
    backend = current_backend()
    services = Services(backend, copy_context())
    ended = anyio.Event()

    async def serve() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    services.start("late", serve)
    await services.stop(10)
    assert ended.is_set()
