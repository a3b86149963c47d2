"""Shielded clean-up."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import anyio

from background._eventloop.interruption import run_shielded
from background._eventloop.running import current_backend
from background._eventloop.services import Services


async def test_scope_cancellation() -> None:
    """`run_shielded()` runs its function to completion in a cancelled scope."""
    ends: list[float] = []

    async def clean_up() -> None:
        await anyio.sleep(5)
        ends.append(anyio.current_time())

    began = anyio.current_time()
    with anyio.move_on_after(1):
        await run_shielded(clean_up)
    assert ends == [began + 5]


def test_native_cancellation() -> None:
    """`run_shielded()` starts its function again after a native cancellation, and returns that."""
    starts: list[anyio.Event] = []

    async def clean_up() -> None:
        starts.append(anyio.Event())
        await starts[-1].wait()

    async def main() -> None:
        task = asyncio.create_task(run_shielded(clean_up))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert len(starts) == 2
        starts[-1].set()
        assert isinstance(await task, asyncio.CancelledError)

    anyio.run(main)
    assert len(starts) == 2


async def test_service_before_first_step() -> None:
    """A service that has not made its first step is stopped as well."""
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
