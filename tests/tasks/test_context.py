"""Rule 2: a task is not its caller's, but sees the context variables of its submission."""

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


async def seen() -> str:
    await checkpoint()
    return VARIABLE.get()


async def value_after(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "done"


Submit = Callable[[Manager], Any]


# The caller's scope, timeout and request


def by_run(manager: Manager) -> TaskHandle[str]:
    return manager.run(value_after, 10)


def by_after(manager: Manager) -> TaskHandle[str]:
    return manager.after(5, value_after, 5)


def by_run_task(manager: Manager) -> TaskHandle[str]:
    return manager.run_task(Task(value_after, args=(10,), retry=3))


ways = pytest.mark.parametrize("submit", [by_run, by_after, by_run_task])


@ways
async def test_task_outlives_its_callers_cancel_scope(manager: Manager, submit: Submit) -> None:
    with anyio.CancelScope() as scope:
        handle = submit(manager)
        scope.cancel()
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert await handle == "done"


@ways
async def test_task_outlives_its_callers_timeout(manager: Manager, submit: Submit) -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(1):
        handle = submit(manager)
        await handle
    assert await handle == "done"


@ways
async def test_task_outlives_its_callers_request(manager: Manager, submit: Submit) -> None:
    """A request is a task in a group, which ends or is cancelled."""
    handles: list[TaskHandle[str]] = []

    async def request(patience: float) -> None:
        handles.append(submit(manager))
        await anyio.sleep(patience)

    async with anyio.create_task_group() as server:
        server.start_soon(request, 0)
        server.start_soon(request, math.inf)
        await anyio.sleep(1)
        server.cancel_scope.cancel()
    assert [handle.status.value for handle in handles].count("cancelled") == 0
    assert [await handle for handle in handles] == ["done", "done"]


async def test_submit_in_a_scope_that_ends(manager: Manager) -> None:
    with anyio.move_on_after(1):
        handle = await manager.submit(Task(value_after, args=(10,)))
        await anyio.sleep_forever()
    assert await handle == "done"


async def test_task_submitted_while_its_caller_is_being_cancelled(manager: Manager) -> None:
    """As in the clean-up of a request whose client has gone."""
    handles: list[TaskHandle[str]] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            handles.append(manager.run(value_after, 10))
    assert await handles[0] == "done"


async def test_task_has_no_deadline_of_its_callers(manager: Manager) -> None:
    async def deadline() -> float:
        return anyio.current_effective_deadline()

    with anyio.fail_after(3600):
        assert await manager.run(deadline) == math.inf


async def test_loop_outlives_its_callers_scope(manager: Manager) -> None:
    with anyio.move_on_after(1):
        loop = manager.every(10, seen)
        await anyio.sleep_forever()
    await anyio.sleep(100)
    assert loop.iteration == 11
    assert loop.error is None


async def test_task_outlives_the_task_that_submitted_it(manager: Manager) -> None:
    children: list[TaskHandle[str]] = []

    async def parent() -> None:
        children.append(manager.run(value_after, 10))
        await anyio.sleep_forever()

    handle = manager.run(parent)
    await anyio.sleep(1)
    handle.cancel()
    assert await handle.wait() is TaskStatus.CANCELLED
    assert await children[0] == "done"


async def test_waiter_that_is_cancelled_leaves_the_task_alone(manager: Manager) -> None:
    handle = manager.run(value_after, 10)
    async with anyio.create_task_group() as waiters:
        waiters.start_soon(handle.result)
        waiters.start_soon(handle.wait)
        await anyio.sleep(1)
        waiters.cancel_scope.cancel()
    assert await handle == "done"


def test_task_outlives_a_native_asyncio_timeout_and_task() -> None:
    async def main() -> None:
        async with Manager() as manager:
            handles: list[TaskHandle[str]] = []

            async def request() -> None:
                handles.append(manager.run(value_after, 0.01))
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


async def test_task_sees_a_copy_made_at_submission(manager: Manager) -> None:
    VARIABLE.set("at submission")
    now, later = manager.run(seen), manager.after(10, seen)
    VARIABLE.set("since then")
    assert await now == "at submission"
    assert await later == "at submission"


async def test_submit_copies_the_submitters_variables(manager: Manager) -> None:
    VARIABLE.set("at submission")
    handle = await manager.submit(Task(seen))
    VARIABLE.set("since then")
    assert await handle == "at submission"


async def test_what_a_task_sets_stays_with_it(manager: Manager) -> None:
    async def set_it() -> None:
        VARIABLE.set("by the task")

    VARIABLE.set("before")
    first, second = manager.run(set_it), manager.run(seen)
    await first
    assert await second == "before"
    assert VARIABLE.get() == "before"


async def test_task_passes_its_variables_on_to_the_tasks_it_submits(manager: Manager) -> None:
    async def parent() -> str:
        VARIABLE.set("by the parent")
        return await manager.run(seen)

    assert await manager.run(parent) == "by the parent"


@pytest.mark.parametrize("schedule", [None, every(10)], ids=["at once", "every"])
async def test_iteration_starts_from_the_copy_afresh(manager: Manager, schedule: Any) -> None:
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


async def test_given_context_is_seen_and_stays_as_it_is(manager: Manager) -> None:
    async def see_and_set() -> str:
        before = VARIABLE.get()
        VARIABLE.set("by a task")
        return before

    context = Context()
    context.run(VARIABLE.set, "given")
    VARIABLE.set("the submitter's")
    shared = Task(see_and_set, context=context)
    handles = [manager.run_task(shared) for _ in range(100)]
    assert {await handle for handle in handles} == {"given"}
    assert context[VARIABLE] == "given"
    assert list(context) == [VARIABLE]


async def test_tasks_share_a_given_context_at_the_same_time(manager: Manager) -> None:
    """A context can be entered once only, so each task has to have a copy."""
    context = copy_context()
    async with anyio.create_task_group() as waiters:
        for _ in range(10):
            handle = manager.run_task(Task(value_after, args=(10,), context=context))
            waiters.start_soon(handle.result)
    loops = [
        manager.run_task(Task(value_after, args=(0.1,), kind=TaskKind.LOOP, context=context))
        for _ in range(2)
    ]
    await anyio.sleep(1)
    assert all(loop.iteration > 1 and loop.error is None for loop in loops)


async def test_context_that_is_being_run_can_be_given(manager: Manager) -> None:
    context = Context()
    context.run(VARIABLE.set, "given")
    handle = context.run(lambda: manager.run_task(Task(seen, context=context)))
    assert await handle == "given"


async def test_context_is_an_option_of_a_function(manager: Manager) -> None:
    context = Context()
    context.run(VARIABLE.set, "the function's")

    @task(context=context)
    async def decorated() -> str:
        return VARIABLE.get()

    assert await manager.run(decorated) == "the function's"


async def test_later_attempts_see_the_submitters_variables(manager: Manager) -> None:
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
async def test_sync_function_sees_the_variables(manager: Manager) -> None:
    def set_it() -> str:
        before = VARIABLE.get()
        VARIABLE.set("by the thread")
        return before

    VARIABLE.set("at submission")
    handle = manager.run(set_it)
    VARIABLE.set("since then")
    assert await handle == "at submission"
    assert VARIABLE.get() == "since then"


@pytest.mark.realtime
async def test_awaitable_of_a_sync_function_sees_the_variables(manager: Manager) -> None:
    VARIABLE.set("at submission")
    assert await manager.run(lambda: seen()) == "at submission"


@pytest.mark.realtime
async def test_task_from_a_thread_sees_the_threads_variables(manager: Manager) -> None:
    def submit() -> TaskHandle[str]:
        VARIABLE.set("the thread's")
        handle = manager.run(seen)
        VARIABLE.set("since then")
        return handle

    VARIABLE.set("the event loop's")
    handle = await anyio.to_thread.run_sync(submit)
    assert await handle == "the thread's"


@pytest.mark.realtime
async def test_task_from_a_thread_that_knows_no_context(manager: Manager) -> None:
    handles: list[TaskHandle[str]] = []
    VARIABLE.set("the event loop's")
    thread = threading.Thread(target=lambda: handles.append(manager.run(seen)))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert await handles[0] == "unset"


@pytest.mark.realtime
@pytest.mark.parametrize("no_blocking_calls", [None], ids=["blocking"])  # of the other event loop
@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_task_from_a_thread_with_an_event_loop_of_its_own(
    manager: Manager, other: str
) -> None:
    """The task belongs to the manager's event loop, in all that it uses."""
    handles: list[TaskHandle[Any]] = []

    async def work() -> Any:
        await checkpoint()
        async with anyio.create_task_group() as group:
            group.start_soon(checkpoint)
        in_thread = await anyio.to_thread.run_sync(VARIABLE.get)
        return current_token().native_token, in_thread

    async def elsewhere() -> None:
        VARIABLE.set("the other loop's")
        handles.append(manager.run(work))
        handles.append(manager.run(lambda: work()))
        await checkpoint()

    await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=other))
    for handle in handles:
        assert await handle == (current_token().native_token, "the other loop's")
