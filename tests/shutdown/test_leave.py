"""Leaving a manager's block by return, by an error, and in other tasks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.leaving import cleans_up, fails_after, report_to
from support.time import SOON, Clock, ages

from background import (
    Manager,
    ManagerClosed,
    ManagerClosedError,
    ManagerClosing,
    ManagerMisuseError,
    ManagerState,
    Observer,
    Task,
    TaskFailed,
    TaskHandle,
    TaskKind,
    TaskStatus,
)
from background.testing import RecordingObserver

# As close()


async def test_leaving_by_return_waits_as_closing_does(
    clock: Clock, recorder: RecordingObserver
) -> None:
    async with Manager(observers=[recorder]) as manager:
        one_off = manager.run(anyio.sleep, 10)
        loop = manager.loop(anyio.sleep, 4)
        delayed = manager.after(5, checkpoint)
    assert clock.now == 10
    assert manager.state is ManagerState.CLOSED
    report = report_to(recorder)
    assert (report.succeeded, report.cancelled, report.not_started) == (
        (one_off,),
        (loop,),
        (delayed,),
    )
    assert recorder.of(ManagerClosing)[0].reason == "the block was left"
    assert await manager.close() is report


@pytest.mark.parametrize("kind", [ValueError, StopAsyncIteration, StopIteration, TimeoutError])
async def test_leaving_by_an_error_waits_as_closing_does(
    clock: Clock, kind: type[Exception]
) -> None:
    error = kind("of the body")
    with pytest.raises((kind, RuntimeError)) as caught:
        async with Manager() as manager:
            handle = manager.run(anyio.sleep, 10)
            raise error
    assert caught.value is error or caught.value.__cause__ is error
    assert clock.now == 10
    assert handle.status is TaskStatus.SUCCEEDED


async def test_leaving_by_an_error_group_waits_as_closing_does(clock: Clock) -> None:
    with pytest.RaisesGroup(ValueError):
        async with Manager() as manager, anyio.create_task_group() as group:
            handle = manager.run(anyio.sleep, 10)
            group.start_soon(fails_after, 1, ValueError())
    assert clock.now == 10
    assert handle.status is TaskStatus.SUCCEEDED


async def test_leaving_after_closing_takes_no_time(clock: Clock) -> None:
    async with Manager() as manager:
        await manager.close()
    assert clock.now == 0


async def test_leaving_while_closing_waits_for_it(clock: Clock) -> None:
    async with Manager() as manager:
        handle = manager.run(anyio.sleep, 10)
        with anyio.move_on_after(1):
            await manager.close()
    assert clock.now == 10
    assert handle.status is TaskStatus.SUCCEEDED


async def test_leaving_after_a_shutdown_request_has_the_grace(clock: Clock) -> None:
    async with Manager(grace=10) as manager:
        handle = manager.run(ages)
        await anyio.sleep(5)
        manager.request_shutdown()
    assert clock.now == 15
    assert handle.status is TaskStatus.CANCELLED


async def test_a_request_while_leaving_sets_the_grace(clock: Clock) -> None:
    async with Manager(grace=10) as manager:

        async def asks() -> None:
            await anyio.sleep(5)
            manager.request_shutdown()
            await ages()

        handle = manager.run(asks)
    assert clock.now == 15
    assert handle.status is TaskStatus.CANCELLED


async def test_tasks_submitted_by_tasks_while_leaving_are_refused(clock: Clock) -> None:
    errors: list[BaseException] = []

    async def submits() -> None:
        await anyio.sleep(1)
        try:
            manager.run(checkpoint)
        except ManagerClosedError as error:
            errors.append(error)

    async with Manager() as manager:
        manager.run(submits)
    assert len(errors) == 1


async def test_a_stuck_task_does_not_hold_the_block(clock: Clock) -> None:
    async with Manager(grace=1, cancel_timeout=2) as manager:
        handle = manager.run(cleans_up, 100)
        await checkpoint()
        manager.request_shutdown()
    assert clock.now == 3
    assert (await manager.close()).stuck == (handle,)
    assert await handle.wait() is TaskStatus.CANCELLED
    assert clock.now == 101


# Nested


async def test_nested_managers_close_from_the_inside_out(clock: Clock) -> None:
    order: list[str] = []

    class Tells(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_manager_closed(self, event: ManagerClosed) -> None:
            order.append(f"{self.name} at {clock.now:g}")

    async with (
        Manager(observers=[Tells("outer")]) as outer,
        Manager(observers=[Tells("inner")]) as inner,
    ):
        inner.run(anyio.sleep, 5)
        outer.run(anyio.sleep, 8)
    assert order == ["inner at 5", "outer at 8"]


async def test_a_manager_inside_a_task_of_another(clock: Clock) -> None:
    async def serve() -> str:
        async with Manager() as inner:
            handle = inner.run(anyio.sleep, 5)
        return f"{handle.status} at {clock.now:g}"

    async with Manager() as outer:
        handle = outer.run(serve)
    assert await handle == "succeeded at 5"


async def test_cancelling_a_task_with_a_manager_inside(clock: Clock) -> None:
    handles: list[TaskHandle[Any]] = []

    async def serve() -> None:
        async with Manager() as inner:
            handles.append(inner.run(cleans_up, 2))
            await ages()

    async with Manager(cancel_timeout=5) as outer:
        handle = outer.run(serve)
        await anyio.sleep(5)
        report = await outer.close(timeout=0)
    assert clock.now == 7
    assert report.cancelled == (handle,)
    assert handles[0].status is TaskStatus.CANCELLED


async def test_a_task_that_closes_the_manager_that_it_holds_open(clock: Clock) -> None:
    """A task of the inner manager closes the outer one, whose task waits for the inner block."""

    async def closes_outer() -> None:
        await outer.close(timeout=10)

    async def serve() -> None:
        async with Manager() as inner:
            inner.run(closes_outer)

    async with Manager() as outer:
        handle = outer.run(serve)
        with anyio.fail_after(100):
            await handle.wait()
    assert clock.now <= 10


# Failures while leaving


async def test_a_critical_failure_leaves_the_block(clock: Clock) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
        async with Manager(name="core") as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
            other = manager.run(cleans_up, 1)
            await ages()
    assert clock.now == 6
    assert other.status is TaskStatus.CANCELLED


async def test_a_critical_failure_while_leaving(clock: Clock) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
        async with Manager() as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
            other = manager.run(ages)
    assert clock.now == 5
    assert other.status is TaskStatus.CANCELLED


async def test_a_critical_failure_while_leaving_by_an_error(clock: Clock) -> None:
    """Neither of the two is lost."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(ValueError, match="vital"), pytest.RaisesExc(LookupError, match="body")
    ):
        async with Manager() as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError("vital")), critical=True))
            raise LookupError("body")
    assert clock.now == 5


async def test_a_critical_failure_among_the_clean_up(clock: Clock) -> None:
    async def fails_in_clean_up() -> None:
        try:
            await ages()
        finally:
            raise ValueError("vital")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="vital")):
        async with Manager() as manager:
            manager.run_task(Task(fails_in_clean_up, critical=True))
            await anyio.sleep(1)
            await manager.close(timeout=0)


async def test_two_critical_failures_leave_together(clock: Clock) -> None:
    with pytest.RaisesGroup(ValueError, LookupError):
        async with Manager() as manager:
            manager.run_task(Task(fails_after, args=(5, ValueError()), critical=True))
            manager.run_task(Task(fails_in_the_end, args=(LookupError(),), critical=True))
            await ages()


@pytest.mark.parametrize("where", ["in the body", "while leaving"])
async def test_an_interrupt_from_a_task_leaves_as_it_is(clock: Clock, where: str) -> None:
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        async with Manager() as manager:
            manager.run(fails_after, 5, error)
            other = manager.run(ages)
            if where == "in the body":
                await ages()
    assert caught.value is error
    assert clock.now == 5
    assert other.status is TaskStatus.CANCELLED


async def test_an_exit_from_an_observer_leaves_as_it_is() -> None:
    class Exits(Observer):
        def on_task_succeeded(self, event: Any) -> None:
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        async with Manager(observers=[Exits()]) as manager:
            manager.run(checkpoint)
            await ages()
    assert caught.value.code == 3


async def test_a_critical_failure_in_a_cancelled_block(clock: Clock) -> None:
    """The cancellation goes on to its scope, and the failure is still raised."""
    with pytest.raises(BaseExceptionGroup) as caught:
        with anyio.move_on_after(5) as scope:
            async with Manager() as manager:
                manager.run_task(Task(fails_in_the_end, args=(ValueError("vital"),), critical=True))
                await ages()
    assert caught.group_contains(ValueError, match="vital")
    assert scope.cancel_called
    assert clock.now == 5


async def fails_in_the_end(error: Exception) -> None:
    try:
        await ages()
    finally:
        raise error


# Generators and other tasks


async def test_left_by_closing_a_generator(clock: Clock) -> None:
    handles: list[TaskHandle[Any]] = []

    async def serve() -> AsyncGenerator[Manager]:
        async with Manager() as manager:
            handles.append(manager.run(cleans_up, 3))
            yield manager

    generator = serve()
    manager = await anext(generator)
    await anyio.sleep(2)
    await generator.aclose()
    assert clock.now == 5
    assert manager.state is ManagerState.CLOSED
    assert handles[0].status is TaskStatus.CANCELLED


async def test_in_a_context_manager_made_of_a_generator(clock: Clock) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, Manager]]:
        async with Manager() as manager:
            yield {"manager": manager}

    async with lifespan() as state:
        handle = state["manager"].run(anyio.sleep, 5)
    assert clock.now == 5
    assert handle.status is TaskStatus.SUCCEEDED
    with pytest.raises(ValueError, match="body"):
        async with lifespan() as state:
            raise ValueError("body")
    with anyio.move_on_after(1) as scope:
        async with lifespan() as state:
            await ages()
    assert scope.cancelled_caught


@pytest.mark.parametrize("error", [None, ValueError("of the body")])
async def test_left_in_another_task(
    clock: Clock, recorder: RecordingObserver, error: Exception | None
) -> None:
    """The tasks are seen to their end before the mistake is explained."""
    manager = Manager(observers=[recorder])
    entered, leave = anyio.Event(), anyio.Event()
    caught: list[BaseException] = []

    async def enter() -> None:
        await manager.__aenter__()
        entered.set()

    async def leave_it() -> None:
        await entered.wait()
        handles.append(manager.run(anyio.sleep, 10))
        handles.append(manager.loop(anyio.sleep, 3))
        try:
            await manager.__aexit__(type(error) if error else None, error, None)
        except ManagerMisuseError as misuse:
            caught.append(misuse)
        leave.set()

    handles: list[TaskHandle[Any]] = []

    async def host() -> None:
        await enter()
        await leave.wait()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            group.start_soon(leave_it)
    except* RuntimeError:
        pass  # trio objects to the scope that its task never left
    (misuse,) = caught
    assert "left in the task that entered it" in str(misuse)
    assert misuse.__cause__ is error
    assert [handle.status for handle in handles] == [TaskStatus.SUCCEEDED, TaskStatus.CANCELLED]
    assert manager.state is ManagerState.CLOSED
    assert len(report_to(recorder).succeeded) == 1
    assert clock.now == 10


async def test_a_generator_that_another_task_finishes(clock: Clock) -> None:
    """As a fixture might be whose runner uses a task for each half."""
    handles: list[TaskHandle[Any]] = []

    async def fixture() -> AsyncIterator[Manager]:
        async with Manager() as manager:
            handles.append(manager.run(anyio.sleep, 5))
            yield manager

    generator = fixture()
    halfway = anyio.Event()
    caught: list[BaseException] = []

    async def first_half() -> None:
        await anext(generator)
        halfway.set()
        await finished.wait()

    async def second_half() -> None:
        await halfway.wait()
        try:
            await anext(generator, None)
        except ManagerMisuseError as error:
            caught.append(error)
        finished.set()

    finished = anyio.Event()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(first_half)
            group.start_soon(second_half)
    except* RuntimeError:
        pass
    assert len(caught) == 1
    assert handles[0].status is TaskStatus.SUCCEEDED
    assert clock.now == 5


def living() -> int:
    """How many tasks the event loop has, those of this library included."""
    if asyncio_running():
        return len(asyncio.all_tasks())
    import trio

    return trio.lowlevel.current_statistics().tasks_living


def asyncio_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


WAYS: dict[str, BaseException | None] = {
    "return": None,
    "error": ValueError(),
    "interrupt": KeyboardInterrupt(),
    "cancellation": None,
}


# Nothing is left behind


@pytest.mark.parametrize("cancel_timeout", [0, 5])
@pytest.mark.parametrize("way", WAYS)
async def test_no_task_of_the_managers_own_is_left(way: str, cancel_timeout: float) -> None:
    class Watches(Observer):
        async def watch(self, manager: Manager) -> None:
            await ages()

        async def on_task_succeeded(self, event: Any) -> None:
            await checkpoint()

    await checkpoint()
    before = living()
    try:
        with anyio.CancelScope() as scope:
            async with Manager(
                observers=[Watches()], cancel_timeout=cancel_timeout, grace=100
            ) as manager:
                await manager.run(checkpoint)
                manager.every(1, checkpoint)
                manager.after(100, checkpoint)
                await anyio.sleep(2.5)
                manager.request_shutdown()
                assert living() > before
                if (error := WAYS[way]) is not None:
                    raise error
                if way == "cancellation":
                    scope.cancel()
                    await checkpoint()
    except (ValueError, KeyboardInterrupt):
        pass
    for _ in range(5):  # trio's system nursery ends a step later
        await checkpoint()
    assert living() == before


async def test_a_watch_that_does_not_end_is_left_behind(clock: Clock) -> None:
    class Stubborn(Observer):
        async def watch(self, manager: Manager) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(20)

    async with Manager(observers=[Stubborn()], cancel_timeout=3):
        await anyio.sleep(1)
    assert clock.now == 4


async def test_a_watch_that_asks_for_shutdown_as_it_ends_starts_nothing(clock: Clock) -> None:
    class Asks(Observer):
        async def watch(self, manager: Manager) -> None:
            try:
                await ages()
            finally:
                manager.request_shutdown()

    await checkpoint()
    before = living()
    async with Manager(observers=[Asks()]):
        await anyio.sleep(1)
    for _ in range(5):
        await checkpoint()
    assert clock.now == 1
    assert living() == before


# Threads


@pytest.mark.realtime
async def test_leaving_waits_for_threads(recorder: RecordingObserver) -> None:
    entered, release = threading.Event(), threading.Event()

    def work() -> str:
        entered.set()
        release.wait(SOON)
        return "done"

    async with Manager(observers=[recorder]) as manager:
        handle = manager.run(work)
        assert await anyio.to_thread.run_sync(entered.wait, SOON)
        release.set()
    assert await handle == "done"
    assert report_to(recorder).succeeded == (handle,) or recorder.names()[2] == "succeeded"


@pytest.mark.realtime
async def test_a_loop_in_a_thread_finishes_its_iteration(recorder: RecordingObserver) -> None:
    entered = threading.Event()
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        entered.set()

    async with Manager(observers=[recorder]) as manager:
        handle = manager.run_task(Task(work, kind=TaskKind.LOOP))
        assert await anyio.to_thread.run_sync(entered.wait, SOON)
    assert handle.status is TaskStatus.CANCELLED
    assert handle.iteration == len(runs)
    assert recorder.of(TaskFailed) == []


def test_the_clean_up_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A block that was left in peace logs nothing."""
    with caplog.at_level(logging.DEBUG, logger="background"):

        async def main() -> None:
            async with Manager() as manager:
                manager.run(checkpoint)

        anyio.run(main)
    assert [record for record in caplog.records if record.name == "background"] == []
