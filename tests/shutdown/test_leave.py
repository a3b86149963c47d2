"""Leaving a manager's block, in every way that there is."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.time import SOON, Clock, ages

from background import (
    CloseReport,
    Manager,
    ManagerClosed,
    ManagerClosedError,
    ManagerClosing,
    ManagerMisuseError,
    ManagerState,
    Observer,
    Task,
    TaskCancelled,
    TaskCancelledError,
    TaskFailed,
    TaskHandle,
    TaskKind,
    TaskStatus,
    TaskSucceeded,
)
from background.testing import RecordingObserver, VirtualTimeLoop, virtual_time


async def cleans_up(seconds: float, done: list[str] | None = None) -> None:
    """Takes a while to end when it is cancelled."""
    try:
        await ages()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
        if done is not None:
            done.append("cleaned up")


async def fails_after(seconds: float, error: BaseException) -> None:
    await anyio.sleep(seconds)
    raise error


def report_to(recorder: RecordingObserver) -> CloseReport:
    (event,) = recorder.of(ManagerClosed)
    return event.report


class Ending(BaseException):
    """Neither an `Exception` nor known to anybody."""


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


# By cancellation


async def test_cancelling_the_body_cancels_the_tasks(
    clock: Clock, recorder: RecordingObserver
) -> None:
    done: list[str] = []
    with anyio.move_on_after(5) as scope:
        async with Manager(observers=[recorder], cancel_timeout=5) as manager:
            tasks = [
                manager.run(cleans_up, 3, done),
                manager.run(cleans_up, 100),
                manager.after(100, checkpoint),
                manager.loop(anyio.sleep, 100),
                manager.every(100, checkpoint),
            ]
            await ages()
    assert scope.cancelled_caught
    assert clock.now == 10
    assert done == ["cleaned up"]
    report = report_to(recorder)
    assert set(report.cancelled) == {tasks[0], tasks[3], tasks[4]}
    assert report.stuck == (tasks[1],)
    assert report.not_started == (tasks[2],)
    reasons = {event.id: event.reason for event in recorder.of(TaskCancelled)}
    assert reasons == {
        tasks[0].id: "shutdown",
        tasks[2].id: "shutdown",
        tasks[3].id: "shutdown",
        tasks[4].id: "stopped",
    }
    assert recorder.of(ManagerClosing)[0].reason == "the block was cancelled"
    await tasks[1].wait()


async def test_a_timeout_around_the_block(clock: Clock) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(5):
            async with Manager() as manager:
                handle = manager.run(cleans_up, 1)
                await ages()
    assert clock.now == 6
    assert handle.status is TaskStatus.CANCELLED


async def test_a_sibling_that_fails(clock: Clock) -> None:
    async def serve() -> None:
        async with Manager() as manager:
            handles.append(manager.run(ages))
            await ages()

    handles: list[TaskHandle[None]] = []
    with pytest.RaisesGroup(ValueError):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            group.start_soon(fails_after, 5, ValueError())
    assert clock.now == 5
    assert handles[0].status is TaskStatus.CANCELLED


async def test_cancelled_while_leaving(clock: Clock, recorder: RecordingObserver) -> None:
    """Closing goes on, but with the tasks cancelled."""
    with anyio.move_on_after(5) as scope:
        async with Manager(observers=[recorder]) as manager:
            handle = manager.run(cleans_up, 2)
            queued = manager.run(anyio.sleep, 1)
    assert scope.cancelled_caught
    assert clock.now == 7
    report = report_to(recorder)
    assert report.cancelled == (handle,)
    assert report.succeeded == (queued,)


async def test_cancelled_while_leaving_by_an_error(clock: Clock) -> None:
    with anyio.move_on_after(5) as scope:
        async with Manager() as manager:
            handle = manager.run(ages)
            raise ValueError
    assert scope.cancelled_caught
    assert clock.now == 5
    assert handle.status is TaskStatus.CANCELLED


async def test_cancelled_while_the_tasks_clean_up(clock: Clock) -> None:
    """They keep their time for it."""
    with anyio.move_on_after(5) as outer:
        with anyio.move_on_after(2) as inner:
            async with Manager(cancel_timeout=10) as manager:
                handle = manager.run(cleans_up, 8)
                await ages()
    assert inner.cancel_called
    assert outer.cancelled_caught
    assert clock.now == 10
    assert handle.status is TaskStatus.CANCELLED


async def test_cancelled_in_a_shielded_block(clock: Clock) -> None:
    """The shield is the caller's decision: nothing is cancelled before the end."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            async with Manager() as manager:
                handle = manager.run(anyio.sleep, 5)
    assert clock.now == 5
    assert handle.status is TaskStatus.SUCCEEDED


async def test_entered_in_a_cancelled_scope() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Manager() as manager:
            handle = manager.run(ages)
            await checkpoint()
    assert scope.cancelled_caught
    assert manager.state is ManagerState.CLOSED
    assert handle.status is TaskStatus.CANCELLED


async def test_a_body_that_swallows_its_cancellation_leaves_as_it_ends(clock: Clock) -> None:
    """What counts is how the block is left; but inside a cancelled scope waiting is cancelled."""
    with anyio.move_on_after(5):
        async with Manager() as manager:
            handle = manager.run(anyio.sleep, 100)
            try:
                await ages()
            except anyio.get_cancelled_exc_class():
                pass
    assert clock.now == 5
    assert handle.status is TaskStatus.CANCELLED


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Ending])
async def test_what_is_no_exception_cancels_the_tasks(
    clock: Clock, error: type[BaseException]
) -> None:
    raised = error()
    with pytest.raises(error) as caught:
        async with Manager() as manager:
            handle = manager.run(cleans_up, 1)
            await anyio.sleep(5)
            raise raised
    assert caught.value is raised
    assert clock.now == 6
    assert handle.status is TaskStatus.CANCELLED


async def test_cancelling_the_caller_touches_only_what_is_in_its_block(clock: Clock) -> None:
    """A task of an outer manager survives that the inner block is cancelled."""
    async with Manager() as outer:
        with anyio.move_on_after(5):
            async with Manager() as inner:
                lost = inner.run(anyio.sleep, 100)
                kept = outer.run(anyio.sleep, 100)
                await ages()
        assert lost.status is TaskStatus.CANCELLED
        assert kept.status is TaskStatus.RUNNING
    assert clock.now == 100
    assert kept.status is TaskStatus.SUCCEEDED


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


# Nothing is left behind


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


# asyncio's own ways


def uv_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS = [VirtualTimeLoop] if sys.platform == "win32" else [VirtualTimeLoop, uv_loop]


@pytest.fixture(params=LOOPS)
def run(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """Run as `asyncio.run` does; fail if that hangs, or if asyncio has something to complain of."""

    def run_it(main: Callable[[], Awaitable[Any]]) -> Any:
        async def guarded() -> Any:
            return await main()

        with asyncio.Runner(loop_factory=request.param) as runner:
            loop = runner.get_loop()
            loop.call_later(10_000 if request.param is VirtualTimeLoop else 10, loop.stop)
            return runner.run(guarded())

    yield run_it  # type: ignore[misc]
    gc.collect()
    complaints = [record for record in caplog.records if record.name == "asyncio"]
    assert complaints == []


Run = Callable[[Callable[[], Awaitable[Any]]], Any]


async def until(condition: Callable[[], bool]) -> None:
    """Go on in the very step of the event loop in which something has become true."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never became true")


def test_cancelling_the_native_task(run: Run) -> None:
    done: list[str] = []
    recorder = RecordingObserver()

    async def serve() -> None:
        async with Manager(observers=[recorder]) as manager:
            manager.run(cleans_up, 0.01, done)
            started.set()
            await asyncio.sleep(1000)

    async def main() -> None:
        task = asyncio.create_task(serve())
        await started.wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert len(asyncio.all_tasks()) == 1

    started = asyncio.Event()
    run(main)
    assert done == ["cleaned up"]
    assert len(report_to(recorder).cancelled) == 1


def test_cancelling_the_native_task_while_it_leaves(run: Run) -> None:
    recorder = RecordingObserver()

    async def serve() -> None:
        async with Manager(observers=[recorder]) as manager:
            manager.run(asyncio.sleep, 1000)

    async def main() -> None:
        task = asyncio.create_task(serve())
        await until(lambda: recorder.of(ManagerClosing) != [])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    run(main)
    assert len(report_to(recorder).cancelled + report_to(recorder).not_started) == 1


def test_cancelling_the_native_task_again_and_again(run: Run) -> None:
    """Whoever is impatient gets no less: the tasks keep their time to clean up."""
    done: list[str] = []

    async def serve() -> None:
        async with Manager() as manager:
            manager.run(cleans_up, 0.01, done)
            started.set()
            await asyncio.sleep(1000)

    async def main() -> None:
        task = asyncio.create_task(serve())
        await started.wait()
        await asyncio.sleep(0)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["cleaned up"]
        assert len(asyncio.all_tasks()) == 1

    started = asyncio.Event()
    run(main)


def test_a_native_timeout_around_the_block(run: Run) -> None:
    async def main() -> TaskStatus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with Manager() as manager:
                    handle = manager.run(asyncio.sleep, 1000)
                    await asyncio.sleep(1000)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return handle.status

    assert run(main) is TaskStatus.CANCELLED


def test_a_native_timeout_while_leaving(run: Run) -> None:
    async def main() -> TaskStatus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with Manager() as manager:
                    handle = manager.run(asyncio.sleep, 1000)
        return handle.status

    assert run(main) is TaskStatus.CANCELLED


def test_a_critical_failure_does_not_leave_a_native_cancellation_behind(run: Run) -> None:
    async def main() -> int:
        with pytest.RaisesGroup(ValueError):
            async with Manager() as manager:
                manager.run_task(Task(fails_after, args=(0.01, ValueError()), critical=True))
                await asyncio.sleep(1000)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert run(main) == 0


@pytest.mark.parametrize("steps", range(6))
def test_asyncio_run_ends_while_a_manager_is_open(run: Run, steps: int) -> None:
    """It cancels every task there is, those of the manager among them."""
    recorder = RecordingObserver()

    async def serve() -> None:
        async with Manager(observers=[recorder], limit=2) as manager:
            manager.run(asyncio.sleep, 1000)
            manager.run(asyncio.sleep, 1000)
            manager.run(asyncio.sleep, 1000)
            manager.after(1000, checkpoint)
            manager.every(1000, checkpoint)
            manager.loop(asyncio.sleep, 1000)
            started.set()
            await asyncio.sleep(1000)

    async def main() -> None:
        asyncio.create_task(serve())  # noqa: RUF006
        await started.wait()
        for _ in range(steps):
            await asyncio.sleep(0)

    started = asyncio.Event()
    run(main)
    assert recorder.names()[-1] == "closed"
    assert recorder.names().count("cancelled") == 6


@pytest.mark.parametrize("steps", range(8))
def test_asyncio_run_ends_while_a_manager_is_left(run: Run, steps: int) -> None:
    """Everything is told of its end, whatever step of closing the cancellation hits."""
    recorder = RecordingObserver()
    manager = Manager(observers=[recorder], limit=1)
    handles: list[TaskHandle[Any]] = []

    async def serve() -> None:
        async with manager:
            handles.extend(manager.run(asyncio.sleep, 1000) for _ in range(3))
            handles.append(manager.loop(asyncio.sleep, 1000))
            await asyncio.sleep(0)
            leaving.set()

    async def main() -> None:
        asyncio.create_task(serve())  # noqa: RUF006
        await leaving.wait()
        for _ in range(steps):
            await asyncio.sleep(0)

    leaving = asyncio.Event()
    run(main)
    assert manager.state is ManagerState.CLOSED
    assert [handle.status for handle in handles] == [TaskStatus.CANCELLED] * 4
    assert recorder.names().count("cancelled") == 4
    assert recorder.names().count("closed") == 1


@pytest.mark.parametrize("steps", range(6))
def test_cancelling_every_task_while_a_manager_is_left(run: Run, steps: int) -> None:
    """As careless shutdown code does, in whatever step of closing: also the first."""
    recorder = RecordingObserver()
    manager = Manager(observers=[recorder], limit=1)

    async def serve() -> None:
        async with manager:
            for _ in range(3):
                manager.run(asyncio.sleep, 1000)
            await asyncio.sleep(0)

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await until(lambda: manager.state is ManagerState.CLOSING)
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([serving])
        assert len(asyncio.all_tasks()) == 1

    run(main)
    assert recorder.names().count("cancelled") == 3
    assert recorder.names().count("closed") == 1


@pytest.mark.parametrize("steps", range(4))
def test_asyncio_run_ends_while_tasks_clean_up(run: Run, steps: int) -> None:
    done: list[str] = []
    manager = Manager()

    async def serve() -> None:
        async with manager:
            manager.run(cleans_up, 0.01, done)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await manager.close(timeout=0)

    async def main() -> None:
        asyncio.create_task(serve())  # noqa: RUF006
        await until(lambda: manager.state is ManagerState.CLOSING)
        for _ in range(steps):
            await asyncio.sleep(0)

    run(main)
    assert manager.state is ManagerState.CLOSED


def test_asyncio_run_ends_with_a_manager_that_was_never_left(run: Run) -> None:
    """Nobody sees to its tasks then, but nothing hangs either."""

    async def main() -> TaskHandle[Any]:
        manager = await Manager().__aenter__()
        manager.every(1000, checkpoint)
        handle = manager.run(asyncio.sleep, 1000)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return handle

    assert run(main).status is TaskStatus.CANCELLED


def test_asyncio_run_ends_with_a_stuck_task_left_behind(run: Run) -> None:
    async def main() -> TaskHandle[Any]:
        async with Manager(cancel_timeout=0.01) as manager:
            handle = manager.run(cleans_up, 1000)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            report = await manager.close(timeout=0)
            assert report.stuck == (handle,)
        return handle

    assert run(main).status is TaskStatus.CANCELLED


def test_asyncio_run_ends_with_a_thread_left_behind(run: Run) -> None:
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait(SOON)

    async def main() -> TaskHandle[Any]:
        async with Manager(cancel_timeout=0.01) as manager:
            handle = manager.run(work)
            await until(lambda: entered.wait(0.05))
            report = await manager.close(timeout=0)
            assert report.stuck == (handle,)
        return handle

    handle = run(main)
    assert not release.is_set()
    release.set()
    assert handle.status is TaskStatus.CANCELLED


def test_cancelling_every_task_inside_the_block(run: Run) -> None:
    """As careless shutdown code does: no task may be lost in its first step."""

    async def main() -> list[TaskStatus]:
        async with Manager() as manager:
            started = manager.run(asyncio.sleep, 1000)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            fresh = manager.run(asyncio.sleep, 1000)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            return [await started.wait(), await fresh.wait()]

    assert run(main) == [TaskStatus.CANCELLED] * 2


def test_a_task_that_a_native_cancellation_hits(run: Run) -> None:
    async def stops_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1000)

    async def main() -> None:
        recorder = RecordingObserver()
        async with Manager(observers=[recorder], retry=5) as manager:
            handle = manager.run(stops_itself)
            with pytest.raises(TaskCancelledError, match="outside the manager"):
                await handle
            assert await manager.run(asyncio.sleep, 0, "fine") == "fine"
        assert recorder.names(handle.id) == ["added", "started", "cancelled"]

    run(main)


def test_the_end_of_the_grace_with_plain_asyncio(run: Run) -> None:
    """The request comes from a callback, which belongs to no task."""

    async def main() -> TaskStatus:
        async with Manager(grace=0.01) as manager:
            handle = manager.run(asyncio.sleep, 1000)
            asyncio.get_running_loop().call_soon(manager.request_shutdown)
            return await handle.wait()

    assert run(main) is TaskStatus.CANCELLED


def test_submitting_from_a_callback_with_plain_asyncio(run: Run) -> None:
    recorder = RecordingObserver()
    seen: list[str] = []

    class Later(Observer):
        async def on_task_added(self, event: Any) -> None:
            seen.append("added")

    async def work() -> None:
        seen.append("ran")

    async def main() -> None:
        async with Manager(observers=[Later(), recorder]) as manager:
            asyncio.get_running_loop().call_soon(manager.run, work)
            await recorder.wait_for(TaskSucceeded)

    run(main)
    assert sorted(seen) == ["added", "ran"]


def test_waiting_as_long_as_it_takes_waives_the_grace_of_a_signal(run: Run) -> None:
    """Also of one that ends the program afterwards."""
    statuses: list[TaskStatus] = []

    async def main() -> None:
        async with Manager(signals=[signal.SIGINT], grace=0.01) as manager:
            handle = manager.run(asyncio.sleep, 0.05)
            signal.raise_signal(signal.SIGINT)
            await manager.shutdown_requested()
            await asyncio.sleep(0)
            await manager.close(timeout=None)
            statuses.append(handle.status)

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert statuses == [TaskStatus.SUCCEEDED]


def test_a_signal_after_closing_starts_nothing(run: Run) -> None:
    """One that comes while the last services end is put off until the block has been left."""
    seen: list[tuple[float, int]] = []

    class Late(Observer):
        async def watch(self, manager: Manager) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        try:
            async with Manager(signals=[signal.SIGINT], observers=[Late()]):
                await asyncio.sleep(0.01)
                left_at = loop.time()
        finally:
            seen.append((loop.time() - left_at, len(asyncio.all_tasks())))

    with pytest.raises(KeyboardInterrupt):
        run(main)
    ((took, tasks),) = seen
    assert took < 1
    assert tasks == 1


def test_two_managers_left_in_the_wrong_order(run: Run) -> None:
    """The tasks of both are seen to their end all the same."""

    async def main() -> list[TaskStatus]:
        one, other = Manager(), Manager()
        await one.__aenter__()
        await other.__aenter__()
        handles = [one.run(asyncio.sleep, 0.01), other.run(asyncio.sleep, 0.02)]
        for manager in (one, other):
            with suppress(RuntimeError):
                await manager.__aexit__(None, None, None)
        assert one.state is other.state is ManagerState.CLOSED
        return [handle.status for handle in handles]

    assert run(main) == [TaskStatus.SUCCEEDED] * 2


# trio's own ways


def test_trio_ends_with_a_manager_that_was_never_left() -> None:
    import trio

    async def main() -> TaskHandle[Any]:
        manager = await Manager().__aenter__()
        handle = manager.run(ages)
        manager.every(1000, checkpoint)
        await anyio.wait_all_tasks_blocked()
        manager._runtime._body.__exit__(None, None, None)  # type: ignore[union-attr]
        return handle

    handle = trio.run(main)
    assert handle.status is TaskStatus.CANCELLED


def test_trio_ends_with_a_manager_that_was_never_left_but_closes() -> None:
    """Nothing starts again and again what the end of the event loop cancels."""
    handles: list[TaskHandle[Any]] = []

    async def main() -> None:
        manager = await Manager().__aenter__()
        handles.append(manager.run(cleans_up, 0.05))
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01):
            await manager.close()
        manager._runtime._body.__exit__(None, None, None)  # type: ignore[union-attr]

    thread = threading.Thread(
        target=anyio.run, args=(main,), kwargs={"backend": "trio"}, daemon=True
    )
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()
    assert handles[0].status is TaskStatus.CANCELLED


def test_keyboard_interrupt_handed_to_trio_in_the_middle_of_the_body() -> None:
    backend, options = virtual_time("trio")
    recorder = RecordingObserver()

    async def main() -> None:
        async with Manager(observers=[recorder]) as manager:
            manager.run(ages)
            await anyio.sleep(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend, backend_options=options)
    assert len(report_to(recorder).cancelled) == 1


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
