"""Isolation of tasks from the caller's scopes, and the context variables that they get."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint, current_token

from background import Manager, Task, TaskHandle, TaskKind, TaskStatus, every, task

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


async def read_variable() -> str:
    await checkpoint()
    return VARIABLE.get()


async def return_after(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "done"


Submit = Callable[[Manager], Any]


# The caller's scope, timeout and request


def call_run(manager: Manager) -> TaskHandle[str]:
    return manager.run(return_after, 10)


def call_after(manager: Manager) -> TaskHandle[str]:
    return manager.after(5, return_after, 5)


def call_run_task(manager: Manager) -> TaskHandle[str]:
    return manager.run_task(Task(return_after, args=(10,), retry=3))


submit_methods = pytest.mark.parametrize("submit", [call_run, call_after, call_run_task])


@submit_methods
async def test_task_outlives_cancel_scope(manager: Manager, submit: Submit) -> None:
    """A task continues after the cancel scope of its caller is cancelled."""
    with anyio.CancelScope() as scope:
        handle = submit(manager)
        scope.cancel()
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert await handle == "done"


@submit_methods
async def test_task_outlives_timeout(manager: Manager, submit: Submit) -> None:
    """A task continues after its caller's timeout expires."""
    with pytest.raises(TimeoutError), anyio.fail_after(1):
        handle = submit(manager)
        await handle
    assert await handle == "done"


@submit_methods
async def test_task_outlives_request(manager: Manager, submit: Submit) -> None:
    """A task continues after the request that submitted it ends or is cancelled."""
    handles: list[TaskHandle[str]] = []

    async def request(duration: float) -> None:
        handles.append(submit(manager))
        await anyio.sleep(duration)

    async with anyio.create_task_group() as server:
        server.start_soon(request, 0)
        server.start_soon(request, math.inf)
        await anyio.sleep(1)
        server.cancel_scope.cancel()
    assert [handle.status.value for handle in handles].count("cancelled") == 0
    assert [await handle for handle in handles] == ["done", "done"]


async def test_submit_in_expiring_scope(manager: Manager) -> None:
    """A task submitted with `submit()` continues after the caller's scope expires."""
    with anyio.move_on_after(1):
        handle = await manager.submit(Task(return_after, args=(10,)))
        await anyio.sleep_forever()
    assert await handle == "done"


async def test_submit_during_cancellation(manager: Manager) -> None:
    """A task that a cancelled caller submits in its clean-up runs to completion."""
    handles: list[TaskHandle[str]] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            handles.append(manager.run(return_after, 10))
    assert await handles[0] == "done"


async def test_deadline_not_inherited(manager: Manager) -> None:
    """A task does not inherit its caller's deadline."""

    async def get_deadline() -> float:
        return anyio.current_effective_deadline()

    with anyio.fail_after(3600):
        assert await manager.run(get_deadline) == math.inf


async def test_loop_outlives_scope(manager: Manager) -> None:
    """A loop continues after the cancel scope of its caller expires."""
    with anyio.move_on_after(1):
        loop = manager.every(10, read_variable)
        await anyio.sleep_forever()
    await anyio.sleep(100)
    assert loop.iteration == 11
    assert loop.error is None


async def test_task_outlives_parent_task(manager: Manager) -> None:
    """A task continues after the task that submitted it is cancelled."""
    children: list[TaskHandle[str]] = []

    async def parent() -> None:
        children.append(manager.run(return_after, 10))
        await anyio.sleep_forever()

    handle = manager.run(parent)
    await anyio.sleep(1)
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED
    assert await children[0] == "done"


async def test_cancelled_waiter(manager: Manager) -> None:
    """Cancelling the waiters of a task does not cancel the task."""
    handle = manager.run(return_after, 10)
    async with anyio.create_task_group() as waiters:
        waiters.start_soon(handle.result)
        waiters.start_soon(handle.wait)
        await anyio.sleep(1)
        waiters.cancel_scope.cancel()
    assert await handle == "done"


def test_task_outlives_asyncio_cancellation() -> None:
    """A task continues after `asyncio.timeout()` or `asyncio.Task.cancel()` cancels its caller."""

    async def main() -> None:
        async with Manager() as manager:
            handles: list[TaskHandle[str]] = []

            async def request() -> None:
                handles.append(manager.run(return_after, 0.01))
                await asyncio.Event().wait()

            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await request()
            native = asyncio.create_task(request())
            await asyncio.sleep(0)
            native.cancel()
            await asyncio.wait([native])
            assert [await handle for handle in handles] == ["done", "done"]

    asyncio.run(main())


# Context variables


async def test_context_copied_at_submission(manager: Manager) -> None:
    """A task reads the context variables as they were when it was submitted."""
    VARIABLE.set("at submission")
    now, later = manager.run(read_variable), manager.after(10, read_variable)
    VARIABLE.set("since then")
    assert await now == "at submission"
    assert await later == "at submission"


async def test_submit_copies_context(manager: Manager) -> None:
    """`submit()` copies the context variables of its caller."""
    VARIABLE.set("at submission")
    handle = await manager.submit(Task(read_variable))
    VARIABLE.set("since then")
    assert await handle == "at submission"


async def test_variable_set_by_task(manager: Manager) -> None:
    """A variable set by a task is visible neither to its caller nor to other tasks."""

    async def set_variable() -> None:
        VARIABLE.set("by the task")

    VARIABLE.set("before")
    first, second = manager.run(set_variable), manager.run(read_variable)
    await first
    assert await second == "before"
    assert VARIABLE.get() == "before"


async def test_child_task_inherits_context(manager: Manager) -> None:
    """A task passes its context variables on to the tasks that it submits."""

    async def parent() -> str:
        VARIABLE.set("by the parent")
        return await manager.run(read_variable)

    assert await manager.run(parent) == "by the parent"


@pytest.mark.parametrize("schedule", [None, every(10)], ids=["at once", "every"])
async def test_iterations_start_from_same_context(manager: Manager, schedule: Any) -> None:
    """Every iteration of a loop starts from the context copied at submission."""
    found: list[str] = []

    async def work() -> None:
        found.append(VARIABLE.get())
        VARIABLE.set("by an iteration")
        await anyio.sleep(1)

    VARIABLE.set("at submission")
    loop = manager.run_task(Task(work, kind=TaskKind.LOOP, schedule=schedule))
    VARIABLE.set("since then")
    await anyio.sleep(35)
    loop.cancel()
    assert len(found) > 3
    assert set(found) == {"at submission"}


async def test_explicit_context_unchanged(manager: Manager) -> None:
    """Tasks read the variables of an explicit context and leave the context unchanged."""

    async def read_and_set() -> str:
        before = VARIABLE.get()
        VARIABLE.set("by a task")
        return before

    context = Context()
    context.run(VARIABLE.set, "given")
    VARIABLE.set("the submitter's")
    shared = Task(read_and_set, context=context)
    handles = [manager.run_task(shared) for _ in range(100)]
    assert {await handle for handle in handles} == {"given"}
    assert context[VARIABLE] == "given"
    assert list(context) == [VARIABLE]


async def test_shared_explicit_context(manager: Manager) -> None:
    """Concurrent tasks can share an explicit context.

    A context can be entered only once at a time, so every task gets a copy.
    """
    context = copy_context()
    async with anyio.create_task_group() as waiters:
        for _ in range(10):
            handle = manager.run_task(Task(return_after, args=(10,), context=context))
            waiters.start_soon(handle.result)
    loops = [
        manager.run_task(Task(return_after, args=(0.1,), kind=TaskKind.LOOP, context=context))
        for _ in range(2)
    ]
    await anyio.sleep(1)
    assert all(loop.iteration > 1 and loop.error is None for loop in loops)


async def test_active_context(manager: Manager) -> None:
    """A context can be passed to a task while code runs in it."""
    context = Context()
    context.run(VARIABLE.set, "given")
    handle = context.run(lambda: manager.run_task(Task(read_variable, context=context)))
    assert await handle == "given"


async def test_context_from_decorator(manager: Manager) -> None:
    """`@task` accepts a context for the tasks of the function."""
    context = Context()
    context.run(VARIABLE.set, "the function's")

    @task(context=context)
    async def decorated() -> str:
        return VARIABLE.get()

    assert await manager.run(decorated) == "the function's"


async def test_retries_keep_context(manager: Manager) -> None:
    """Every attempt of a retried task reads the variables of its submission."""
    found: list[str] = []

    async def fail() -> None:
        found.append(VARIABLE.get())
        raise ValueError

    VARIABLE.set("at submission")
    handle = manager.run_task(Task(fail, retry=3))
    VARIABLE.set("since then")
    assert await handle.wait() is TaskStatus.FAILED
    assert found == ["at submission"] * 3


# Threads


@pytest.mark.realtime
async def test_context_in_thread(manager: Manager) -> None:
    """A sync function reads the variables of its submission and does not change the caller's."""

    def set_variable() -> str:
        before = VARIABLE.get()
        VARIABLE.set("by the thread")
        return before

    VARIABLE.set("at submission")
    handle = manager.run(set_variable)
    VARIABLE.set("since then")
    assert await handle == "at submission"
    assert VARIABLE.get() == "since then"


@pytest.mark.realtime
async def test_context_of_returned_awaitable(manager: Manager) -> None:
    """An awaitable returned by a sync function runs with the variables of the submission."""
    VARIABLE.set("at submission")
    assert await manager.run(lambda: read_variable()) == "at submission"


@pytest.mark.realtime
async def test_submit_from_thread_copies_context(manager: Manager) -> None:
    """A task submitted from a worker thread gets that thread's context variables."""

    def submit() -> TaskHandle[str]:
        VARIABLE.set("the thread's")
        handle = manager.run(read_variable)
        VARIABLE.set("since then")
        return handle

    VARIABLE.set("the event loop's")
    handle = await anyio.to_thread.run_sync(submit)
    assert await handle == "the thread's"


@pytest.mark.realtime
async def test_submit_from_thread_without_context(manager: Manager) -> None:
    """A task submitted from a thread without a context reads the variables' defaults."""
    handles: list[TaskHandle[str]] = []
    VARIABLE.set("the event loop's")
    thread = threading.Thread(target=lambda: handles.append(manager.run(read_variable)))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert await handles[0] == "unset"


@pytest.mark.realtime
@pytest.mark.usefixtures("blocking_calls")  # the second event loop blocks its thread
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_submit_from_another_event_loop(manager: Manager, backend: str) -> None:
    """A task submitted from another event loop runs in the manager's event loop."""
    handles: list[TaskHandle[Any]] = []

    async def work() -> Any:
        await checkpoint()
        async with anyio.create_task_group() as group:
            group.start_soon(checkpoint)
        in_thread = await anyio.to_thread.run_sync(VARIABLE.get)
        return current_token().native_token, in_thread

    async def submit() -> None:
        VARIABLE.set("the second loop's")
        handles.append(manager.run(work))
        handles.append(manager.run(lambda: work()))
        await checkpoint()

    await anyio.to_thread.run_sync(lambda: anyio.run(submit, backend=backend))
    for handle in handles:
        assert await handle == (current_token().native_token, "the second loop's")
