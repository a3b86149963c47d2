"""`async def` hooks: in order, through a bounded buffer, never at the tasks' expense."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.outcomes import HOOKS, TWICE, Flaky, broken, everything_happens, fine, nap

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

SIZE = 1024  # events that wait for one observer, at most


class Later(Observer):
    """Takes `seconds` for each event; keeps those that it has done with."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.kept: list[Any] = []

    async def keep(self, event: Any) -> None:
        await anyio.sleep(self.seconds)
        self.kept.append(event)


for name in HOOKS:

    async def keep(self: Later, event: Any) -> None:
        await self.keep(event)

    setattr(Later, name, keep)


class LaterAdded(Observer):
    """As `Later`, of added tasks only."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.kept: list[Any] = []

    async def on_task_added(self, event: TaskAdded) -> None:
        await anyio.sleep(self.seconds)
        self.kept.append(event)


@pytest.mark.parametrize("seconds", [0, 0.01], ids=["quick", "slow"])
async def test_events_come_in_order(seconds: float, recorder: RecordingObserver) -> None:
    """All hooks of an observer share one order, which is that of what happened."""
    later = Later(seconds)
    await everything_happens(later, recorder)
    assert later.kept == recorder.events


@pytest.mark.realtime
async def test_events_come_in_order_in_real_time(recorder: RecordingObserver) -> None:
    later = Later()
    async with Manager(observers=[later, recorder]) as manager:
        for number in range(50):
            manager.run(lambda: None)
            manager.run_task(Task(Flaky(number % 2), retry=2))
        await manager.close(timeout=0)
    assert later.kept == recorder.events
    assert len(later.kept) >= 2 * 100 + 2


async def test_one_event_at_a_time() -> None:
    inside: list[str] = []
    most = 0

    class Counting(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            nonlocal most
            inside.append(event.id)
            most = max(most, len(inside))
            await anyio.sleep(1)
            inside.remove(event.id)

    async with Manager(observers=[Counting()], cancel_timeout=60) as manager:
        for _ in range(10):
            manager.run(fine)
    assert most == 1


async def test_tasks_do_not_wait_for_slow_hooks() -> None:
    later = Later(100)
    async with Manager(observers=[later], cancel_timeout=0) as manager:
        began = anyio.current_time()
        for _ in range(10):
            await manager.run(nap, 1)
        await manager.run_task(Task(Flaky(1), retry=TWICE))
        assert anyio.current_time() - began == pytest.approx(15)
    assert later.kept == []


async def test_observers_do_not_wait_for_each_other() -> None:
    slow, quick = Later(100), Later()
    async with Manager(observers=[slow, quick], cancel_timeout=0) as manager:
        await manager.run(nap, 1)
        await anyio.sleep(1)
        assert len(quick.kept) == 3
        assert slow.kept == []


async def test_plain_hooks_of_the_same_observer_do_not_wait_either() -> None:
    told: list[str] = []

    class Mixed(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep(100)
            told.append("added")

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            told.append("succeeded")

    async with Manager(observers=[Mixed()], cancel_timeout=200) as manager:
        await manager.run(fine)
        assert told == ["succeeded"]
    assert told == ["succeeded", "added"]


async def test_buffer_takes_up_again_after_a_pause() -> None:
    """It is served by nothing while it is empty, and again as soon as it is not."""
    later = Later(1)
    async with Manager(observers=[later]) as manager:
        for count in (3, 6):
            await manager.run(fine)
            await anyio.sleep(60)
            assert len(later.kept) == count


async def test_hook_may_submit_a_task_whose_events_it_gets(recorder: RecordingObserver) -> None:
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


async def test_overflow_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The oldest events are kept, the tasks run all the same, and the log is not flooded."""
    later = LaterAdded(0.001)
    async with Manager(observers=[later], cancel_timeout=60) as manager:
        handles = [manager.run(fine) for _ in range(SIZE + 100)]
        assert manager.health().events_dropped == 100
        (record,) = caplog.records
        told = "Observer hook LaterAdded.on_task_added is too slow: 1024 events are buffered."
        assert record.getMessage().startswith(told)
        assert record.levelname == "WARNING"
    assert [event.id for event in later.kept] == [handle.id for handle in handles[:SIZE]]
    assert {handle.status for handle in handles} == {TaskStatus.SUCCEEDED}
    messages = [(record.levelname, record.getMessage()) for record in caplog.records[1:]]
    assert messages == [("WARNING", "Observer LaterAdded was too slow and missed 100 events.")]
    assert manager.health().events_dropped == 100
    assert manager.health().hook_errors == 0


async def test_there_is_room_again_after_an_overflow() -> None:
    later = LaterAdded(1)
    async with Manager(observers=[later]) as manager:
        for _ in range(SIZE + 10):
            manager.run(fine)
        await anyio.sleep(2 * SIZE)
        handle = manager.run(fine)
        await anyio.sleep(5)
        assert later.kept[-1].id == handle.id
        assert len(later.kept) == SIZE + 1
        assert manager.health().events_dropped == 10


async def test_each_observer_has_a_buffer_of_its_own() -> None:
    slow, quick, plain = LaterAdded(1000), Later(), RecordingObserver()
    async with Manager(observers=[slow, quick, plain], cancel_timeout=0) as manager:
        for _ in range(SIZE + 10):
            await manager.run(fine)
            await anyio.sleep(0.1)
        assert len(quick.kept) == len(plain.events) == 3 * (SIZE + 10)
        assert manager.health().events_dropped == 9  # one more is in the hook


async def test_overflow_of_an_observer_that_left_is_still_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    later = LaterAdded(0.001)
    async with Manager() as manager:
        for _ in range(SIZE + 100):
            manager.run_task(Task(fine, observers=(later,)))
        await anyio.sleep(60)
        assert manager.health().events_dropped == 100
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[-1] == "Observer LaterAdded was too slow and missed 100 events."
    assert len(warnings) == 2


async def test_failure_that_does_not_fit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No failure is silent: one that overflows has not been told."""

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


async def test_overflow_by_awaitables_of_plain_hooks() -> None:
    """A coroutine that there is no room for is closed, and nothing warns of it."""
    gate = anyio.Event()
    kept: list[Any] = []

    class Returning(Observer):
        def on_task_added(self, event: TaskAdded) -> Awaitable[None]:
            return self.keep(event)

        async def keep(self, event: TaskAdded) -> None:
            await gate.wait()
            kept.append(event)

    async with Manager(observers=[Returning()], cancel_timeout=60) as manager:
        for _ in range(SIZE + 10):
            manager.run(fine)
        gate.set()
    assert len(kept) == SIZE
    assert manager.health().events_dropped == 10


# Closing


@pytest.mark.parametrize("cancel_timeout", [0, 5])
async def test_closing_waits_for_hooks_up_to_the_cancel_timeout(cancel_timeout: float) -> None:
    later = Later(1000)
    async with Manager(observers=[later], cancel_timeout=cancel_timeout) as manager:
        manager.run(fine)
        await manager.wait()
        began = anyio.current_time()
        await manager.close()
        assert anyio.current_time() - began == pytest.approx(cancel_timeout)
        assert manager.state is ManagerState.CLOSED
    assert anyio.current_time() - began == pytest.approx(cancel_timeout)
    assert later.kept == []


async def test_closing_lets_hooks_catch_up(recorder: RecordingObserver) -> None:
    later = Later(1)
    async with Manager(observers=[later, recorder], cancel_timeout=6) as manager:
        await manager.run(fine)
    assert [type(event) for event in later.kept] == [type(event) for event in recorder.events]
    assert later.kept[-1].report.stuck == ()


@pytest.mark.parametrize("hook", HOOKS)
async def test_hanging_hook_harms_nothing(hook: str) -> None:
    """Whichever hook never returns, tasks meet their fates and closing is bounded."""

    async def hang(self: Observer, event: Any) -> None:
        await anyio.sleep_forever()

    expected, recorder = RecordingObserver(), RecordingObserver()
    began = anyio.current_time()
    await everything_happens(expected)
    took = anyio.current_time() - began
    began = anyio.current_time()
    manager = await everything_happens(type("Hanging", (Observer,), {hook: hang})(), recorder)
    assert anyio.current_time() - began <= took + 1.001  # the cancel_timeout
    assert recorder.names() == expected.names()
    assert manager.state is ManagerState.CLOSED
    assert manager.count() == 0


@pytest.mark.parametrize("hook", HOOKS)
async def test_hook_that_swallows_its_cancellation_harms_nothing(hook: str) -> None:
    swallowed: list[object] = []

    async def hang(self: Observer, event: Any) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10_000)
        swallowed.append(event)

    recorder = RecordingObserver()
    began = anyio.current_time()
    manager = await everything_happens(type("Hanging", (Observer,), {hook: hang})(), recorder)
    assert anyio.current_time() - began <= 10 + 2 * 1.001  # to flush, and to be cancelled
    assert recorder.names()[-1] == "closed"
    assert manager.count() == 0
    assert swallowed == []


async def test_hanging_hook_is_cancelled_when_the_manager_is_left() -> None:
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


async def test_events_that_a_hanging_hook_never_got_are_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What closing leaves undelivered is as lost as what overflowed."""
    later = LaterAdded(1000)
    async with Manager(observers=[later], cancel_timeout=1) as manager:
        for _ in range(5):
            manager.run(fine)
    assert later.kept == []
    assert manager.health().events_dropped == 5
    (record,) = caplog.records
    assert record.getMessage() == "Observer LaterAdded was too slow and missed 5 events."


async def test_failure_that_was_not_delivered_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No failure is silent: one that no hook got around to has not been told."""

    class Stuck(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep_forever()

        async def on_task_failed(self, event: TaskFailed) -> None:
            pass

    async with Manager(observers=[Stuck()], cancel_timeout=1) as manager:
        manager.run_task(Task(broken, name="mine"))
    assert [record for record in caplog.records if "task 'mine'" in record.getMessage()]


async def test_undelivered_awaitables_are_closed() -> None:
    """Coroutines that no time was left for are closed, and nothing warns of them."""

    class Returning(Observer):
        def on_task_added(self, event: TaskAdded) -> Awaitable[None]:
            return anyio.sleep_forever()

    async with Manager(observers=[Returning()], cancel_timeout=1) as manager:
        for _ in range(5):
            manager.run(fine)
    assert manager.state is ManagerState.CLOSED


async def test_events_of_a_task_that_closes_the_manager_are_delivered(
    recorder: RecordingObserver,
) -> None:
    """It ends after the report was made, and its end is told to `async def` hooks too."""

    async def close_from_inside() -> None:
        await manager.close()
        await anyio.sleep(1)

    later = Later(0.1)
    async with Manager(observers=[later, recorder]) as manager:
        manager.run(close_from_inside)
        await manager.shutdown_requested()
    assert recorder.names() == ["added", "started", "closing", "closed", "succeeded"]
    assert later.kept == recorder.events


async def test_stuck_task_that_ends_later_harms_nothing(recorder: RecordingObserver) -> None:
    """A task that outlives the manager may still be told of, to whom it may concern."""

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


def test_hook_that_awaits_something_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """On asyncio, awaiting what was cancelled raises as if the hook itself were."""
    kept: list[str] = []

    class Awaiting(Observer):
        async def on_task_started(self, event: object) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        async def on_task_succeeded(self, event: TaskSucceeded) -> None:
            kept.append(event.id)

    async def main() -> None:
        async with Manager(observers=[Awaiting()]) as manager:
            handles = [manager.run(fine) for _ in range(3)]
        assert kept == [handle.id for handle in handles]
        assert manager.health().hook_errors == 3

    asyncio.run(main())
    assert "Awaiting.on_task_started raised an exception" in caplog.records[0].getMessage()


def test_event_loop_that_shuts_down_does_not_wait_for_hooks() -> None:
    """Hooks in the middle of something are cancelled for good when asyncio cancels all tasks."""
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


def test_hook_that_asyncio_cancels_is_not_forgotten_for_those_that_follow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failure that one did not get to the end of is logged like any that nobody is told of."""
    paging = asyncio.Event()

    class Pager(Observer):
        async def on_task_failed(self, event: TaskFailed) -> None:
            paging.set()
            await anyio.sleep(0.01)

    async def main() -> None:
        async with Manager(observers=[Pager()]) as manager:
            manager.run_task(Task(broken, name="first"))
            await paging.wait()
            for each in asyncio.all_tasks():
                if each.get_name().endswith("Pager"):
                    each.cancel()
            await asyncio.sleep(0)
            await manager.run_task(Task(broken, name="second")).wait()
        assert manager.health().events_dropped == 1

    asyncio.run(main())
    failures = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(failures) == 1
    assert failures[0].startswith("task 'first'")
