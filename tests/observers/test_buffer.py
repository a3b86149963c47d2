"""The buffer between tasks and `async def` hooks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.outcomes import HOOKS, TWICE, Flaky, broken, call_every_hook, fine, nap

from background import (
    Manager,
    ManagerState,
    Observer,
    Task,
    TaskAdded,
    TaskFailed,
    TaskStatus,
    TaskSucceeded,
)
from background.testing import RecordingObserver

SIZE = 1024  # the most events that are buffered for an observer


class Later(Observer):
    """Takes `seconds` for an event; records the events that it has processed."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.processed: list[Any] = []

    async def process(self, event: Any) -> None:
        await anyio.sleep(self.seconds)
        self.processed.append(event)


for name in HOOKS:

    async def process(self: Later, event: Any) -> None:
        await self.process(event)

    setattr(Later, name, process)


class LaterAdded(Observer):
    """The same for added tasks only."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.processed: list[Any] = []

    async def on_task_added(self, event: TaskAdded) -> None:
        await anyio.sleep(self.seconds)
        self.processed.append(event)


@pytest.mark.parametrize("seconds", [0, 0.01], ids=["quick", "slow"])
async def test_event_order(seconds: float, recorder: RecordingObserver) -> None:
    """All hooks of an observer receive the events in the order in which these occur."""
    later = Later(seconds)
    await call_every_hook(later, recorder)
    assert later.processed == recorder.events


@pytest.mark.realtime
async def test_event_order_in_real_time(recorder: RecordingObserver) -> None:
    """Hooks receive the events of sync functions and retries in order in real time."""
    later = Later()
    async with Manager(observers=[later, recorder]) as manager:
        for number in range(50):
            manager.run(lambda: None)
            manager.run_task(Task(Flaky(number % 2), retry=2))
        await manager.close(timeout=0)
    assert later.processed == recorder.events
    assert len(later.processed) >= 2 * 100 + 2


async def test_one_event_at_a_time() -> None:
    """A hook is not called before the previous call has returned."""
    in_progress: list[str] = []
    most = 0

    class Counting(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            nonlocal most
            in_progress.append(event.id)
            most = max(most, len(in_progress))
            await anyio.sleep(1)
            in_progress.remove(event.id)

    async with Manager(observers=[Counting()], cancel_timeout=60) as manager:
        for _ in range(10):
            manager.run(fine)
    assert most == 1


async def test_tasks_do_not_wait() -> None:
    """Tasks do not wait for slow hooks."""
    later = Later(100)
    async with Manager(observers=[later], cancel_timeout=0) as manager:
        began = anyio.current_time()
        for _ in range(10):
            await manager.run(nap, 1)
        await manager.run_task(Task(Flaky(1), retry=TWICE))
        assert anyio.current_time() - began == pytest.approx(15)
    assert later.processed == []


async def test_observers_do_not_wait() -> None:
    """An observer does not wait for another, slow one."""
    slow, quick = Later(100), Later()
    async with Manager(observers=[slow, quick], cancel_timeout=0) as manager:
        await manager.run(nap, 1)
        await anyio.sleep(1)
        assert len(quick.processed) == 3
        assert slow.processed == []


async def test_plain_hooks_do_not_wait() -> None:
    """Plain hooks do not wait for the `async def` hooks of the same observer."""
    calls: list[str] = []

    class Mixed(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep(100)
            calls.append("added")

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            calls.append("succeeded")

    async with Manager(observers=[Mixed()], cancel_timeout=200) as manager:
        await manager.run(fine)
        assert calls == ["succeeded"]
    assert calls == ["succeeded", "added"]


async def test_empty_buffer() -> None:
    """An empty buffer is processed again as soon as it receives an event."""
    later = Later(1)
    async with Manager(observers=[later]) as manager:
        for count in (3, 6):
            await manager.run(fine)
            await anyio.sleep(60)
            assert len(later.processed) == count


async def test_hook_submits_task(recorder: RecordingObserver) -> None:
    """A hook can submit a task, and receives its events."""

    class Chain(Observer):
        def __init__(self) -> None:
            self.left = 3

        async def on_task_succeeded(self, event: TaskSucceeded) -> None:
            if self.left:
                self.left -= 1
                await manager.run(fine)

    async with Manager(observers=[Chain(), recorder]) as manager:
        manager.run(fine)
        await anyio.sleep(1)
    assert recorder.names().count("succeeded") == 4


# Overflow


async def test_overflow(caplog: pytest.LogCaptureFixture) -> None:
    """An overflow drops the newest events, is counted, and is logged once and in a summary."""
    later = LaterAdded(0.001)
    async with Manager(observers=[later], cancel_timeout=60) as manager:
        handles = [manager.run(fine) for _ in range(SIZE + 100)]
        assert manager.health().events_dropped == 100
        (record,) = caplog.records
        expected = "Observer hook LaterAdded.on_task_added is too slow: 1024 events are buffered."
        assert record.getMessage().startswith(expected)
        assert record.levelname == "WARNING"
    assert [event.id for event in later.processed] == [handle.id for handle in handles[:SIZE]]
    assert {handle.status for handle in handles} == {TaskStatus.SUCCEEDED}
    messages = [(record.levelname, record.getMessage()) for record in caplog.records[1:]]
    assert messages == [("WARNING", "Observer LaterAdded missed 100 events.")]
    assert manager.health().events_dropped == 100
    assert manager.health().hook_errors == 0


async def test_event_after_overflow() -> None:
    """The buffer accepts events again after an overflow."""
    later = LaterAdded(1)
    async with Manager(observers=[later]) as manager:
        for _ in range(SIZE + 10):
            manager.run(fine)
        await anyio.sleep(2 * SIZE)
        handle = manager.run(fine)
        await anyio.sleep(5)
        assert later.processed[-1].id == handle.id
        assert len(later.processed) == SIZE + 1
        assert manager.health().events_dropped == 10


async def test_separate_buffers() -> None:
    """An overflow of one observer does not affect the others."""
    slow, quick, plain = LaterAdded(1000), Later(), RecordingObserver()
    async with Manager(observers=[slow, quick, plain], cancel_timeout=0) as manager:
        for _ in range(SIZE + 10):
            await manager.run(fine)
            await anyio.sleep(0.1)
        assert len(quick.processed) == len(plain.events) == 3 * (SIZE + 10)
        assert manager.health().events_dropped == 9  # one more is in the hook


async def test_overflow_of_task_observer(caplog: pytest.LogCaptureFixture) -> None:
    """An overflow of a task's observer is counted after its tasks have ended."""
    later = LaterAdded(0.001)
    async with Manager() as manager:
        for _ in range(SIZE + 100):
            manager.run_task(Task(fine, observers=(later,)))
        await anyio.sleep(60)
        assert manager.health().events_dropped == 100
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[-1] == "Observer LaterAdded missed 100 events."
    assert len(warnings) == 2


async def test_dropped_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A failure whose event is dropped is logged, because it was not reported."""

    class Stuck(Observer):
        async def on_task_failed(self, event: TaskFailed) -> None:
            await anyio.sleep_forever()

    async with Manager(observers=[Stuck()], cancel_timeout=0) as manager:
        for _ in range(SIZE + 1):
            await manager.run(broken).wait()
        await anyio.sleep(1)
        caplog.clear()
        manager.run_task(Task(broken, name="one too many"))
        await anyio.sleep(1)
        assert [record for record in caplog.records if "one too many" in record.getMessage()]


async def test_overflow_of_awaitables() -> None:
    """A coroutine of a plain hook that does not fit is closed, without a warning."""
    gate = anyio.Event()
    processed: list[Any] = []

    class Returning(Observer):
        def on_task_added(self, event: TaskAdded) -> Awaitable[None]:
            return self.process(event)

        async def process(self, event: TaskAdded) -> None:
            await gate.wait()
            processed.append(event)

    async with Manager(observers=[Returning()], cancel_timeout=60) as manager:
        for _ in range(SIZE + 10):
            manager.run(fine)
        gate.set()
    assert len(processed) == SIZE
    assert manager.health().events_dropped == 10


# Closing


@pytest.mark.parametrize("cancel_timeout", [0, 5])
async def test_closing_waits_for_hooks(cancel_timeout: float) -> None:
    """Closing waits for hooks for at most `cancel_timeout`."""
    later = Later(1000)
    async with Manager(observers=[later], cancel_timeout=cancel_timeout) as manager:
        manager.run(fine)
        await manager.wait()
        began = anyio.current_time()
        await manager.close()
        assert anyio.current_time() - began == pytest.approx(cancel_timeout)
        assert manager.state is ManagerState.CLOSED
    assert anyio.current_time() - began == pytest.approx(cancel_timeout)
    assert later.processed == []


async def test_hooks_catch_up(recorder: RecordingObserver) -> None:
    """Hooks process their remaining events while the manager closes."""
    later = Later(1)
    async with Manager(observers=[later, recorder], cancel_timeout=6) as manager:
        await manager.run(fine)
    assert [type(event) for event in later.processed] == [type(event) for event in recorder.events]
    assert later.processed[-1].report.stuck == ()


@pytest.mark.parametrize("hook", HOOKS)
async def test_hanging_hook(hook: str) -> None:
    """A hook that never returns does not affect tasks, and delays closing by `cancel_timeout`."""

    async def hang(self: Observer, event: Any) -> None:
        await anyio.sleep_forever()

    expected, recorder = RecordingObserver(), RecordingObserver()
    began = anyio.current_time()
    await call_every_hook(expected)
    took = anyio.current_time() - began
    began = anyio.current_time()
    manager = await call_every_hook(type("Hanging", (Observer,), {hook: hang})(), recorder)
    assert anyio.current_time() - began <= took + 1.001  # the cancel_timeout
    assert recorder.names() == expected.names()
    assert manager.state is ManagerState.CLOSED
    assert manager.count() == 0


@pytest.mark.parametrize("hook", HOOKS)
async def test_hook_ignores_cancellation(hook: str) -> None:
    """A hook that ignores its cancellation delays closing by at most two `cancel_timeout`s."""
    swallowed: list[object] = []

    async def hang(self: Observer, event: Any) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10_000)
        swallowed.append(event)

    recorder = RecordingObserver()
    began = anyio.current_time()
    manager = await call_every_hook(type("Hanging", (Observer,), {hook: hang})(), recorder)
    assert anyio.current_time() - began <= 10 + 2 * 1.001  # to flush, and to be cancelled
    assert recorder.names()[-1] == "closed"
    assert manager.count() == 0
    assert swallowed == []


async def test_hanging_hook_is_cancelled() -> None:
    """A hook that never returns is cancelled when the block is left."""
    ended: list[str] = []

    class Hanging(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(event.id)

    async with Manager(observers=[Hanging()], cancel_timeout=1) as manager:
        handle = manager.run(fine)
        manager.run(fine)
        await manager.close()
        assert ended == []
    assert ended == [handle.id]


async def test_undelivered_events(caplog: pytest.LogCaptureFixture) -> None:
    """Events that are not delivered until closing ends are counted and logged as missed."""
    later = LaterAdded(1000)
    async with Manager(observers=[later], cancel_timeout=1) as manager:
        for _ in range(5):
            manager.run(fine)
    assert later.processed == []
    assert manager.health().events_dropped == 5
    (record,) = caplog.records
    assert record.getMessage() == "Observer LaterAdded missed 5 events."


async def test_undelivered_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A failure that is not delivered until closing ends is logged."""

    class Stuck(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep_forever()

        async def on_task_failed(self, event: TaskFailed) -> None:
            pass

    async with Manager(observers=[Stuck()], cancel_timeout=1) as manager:
        manager.run_task(Task(broken, name="unlucky"))
    assert [record for record in caplog.records if "task 'unlucky'" in record.getMessage()]


async def test_undelivered_awaitables() -> None:
    """Coroutines that are not delivered until closing ends are closed, without a warning."""

    class Returning(Observer):
        def on_task_added(self, event: TaskAdded) -> Awaitable[None]:
            return anyio.sleep_forever()

    async with Manager(observers=[Returning()], cancel_timeout=1) as manager:
        for _ in range(5):
            manager.run(fine)
    assert manager.state is ManagerState.CLOSED


async def test_events_of_closing_task(recorder: RecordingObserver) -> None:
    """The end of a task that closes the manager is delivered, although the report precedes it."""

    async def close_from_inside() -> None:
        await manager.close()
        await anyio.sleep(1)

    later = Later(0.1)
    async with Manager(observers=[later, recorder]) as manager:
        manager.run(close_from_inside)
        await manager.shutdown_requested()
    assert recorder.names() == ["added", "started", "closing", "closed", "succeeded"]
    assert later.processed == recorder.events


async def test_stuck_task_ends_later(recorder: RecordingObserver) -> None:
    """The end of a task that outlives the manager still reaches plain hooks."""

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        await anyio.lowlevel.checkpoint()

    later = Later()
    async with Manager(observers=[later, recorder], cancel_timeout=1) as manager:
        handle = manager.run(stubborn)
        await anyio.sleep(1)
        report = await manager.close(timeout=0)
    assert report.stuck == (handle,)
    assert await handle.wait() is TaskStatus.CANCELLED
    await anyio.sleep(1)
    assert recorder.names() == ["added", "started", "closing", "closed", "cancelled"]
    assert recorder.events[-1].reason == "shutdown"


# Cancellation


def test_hook_awaits_cancelled_future(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that awaits a cancelled future has failed, and the next hooks are called.

    On asyncio this raises the same exception as a cancellation of the hook.
    """
    processed: list[str] = []

    class Awaiting(Observer):
        async def on_task_started(self, event: object) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        async def on_task_succeeded(self, event: TaskSucceeded) -> None:
            processed.append(event.id)

    async def main() -> None:
        async with Manager(observers=[Awaiting()]) as manager:
            handles = [manager.run(fine) for _ in range(3)]
        assert processed == [handle.id for handle in handles]
        assert manager.health().hook_errors == 3

    asyncio.run(main())
    assert "Awaiting.on_task_started raised an exception" in caplog.records[0].getMessage()


def test_event_loop_shutdown() -> None:
    """A hook is cancelled and the next one is not called when asyncio cancels all tasks."""
    entered: list[str] = []

    class Hanging(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            entered.append(event.id)
            await asyncio.sleep(3600)

    async def main() -> None:
        manager = Manager(observers=[Hanging()])
        await manager.__aenter__()
        manager.run(fine)
        manager.run(fine)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert len(entered) == 1


def test_natively_cancelled_hook(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is logged if asyncio cancels its hook, and the next event is delivered."""
    paging = asyncio.Event()

    class Pager(Observer):
        async def on_task_failed(self, event: TaskFailed) -> None:
            paging.set()
            await anyio.sleep(0.01)

    async def main() -> None:
        async with Manager(observers=[Pager()]) as manager:
            manager.run_task(Task(broken, name="first"))
            await paging.wait()
            for task in asyncio.all_tasks():
                if task.get_name().endswith("Pager"):
                    task.cancel()
            await asyncio.sleep(0)
            await manager.run_task(Task(broken, name="second")).wait()
        assert manager.health().events_dropped == 1

    asyncio.run(main())
    failures = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(failures) == 1
    assert failures[0].startswith("task 'first'")
