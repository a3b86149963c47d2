"""Observers that single tasks bring along, beside the manager's."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from support.outcomes import FATES, LOOP, TWICE, Fate, broken, everything_happens, fine, meet, nap

from background import (
    CloseReport,
    InvalidTaskError,
    Manager,
    ManagerClosing,
    Observer,
    Task,
    TaskAdded,
    TaskCancelled,
    TaskEvent,
    TaskStarted,
    TaskStatus,
    TaskSucceeded,
    every,
    task,
)
from background.testing import RecordingObserver


@pytest.mark.parametrize("fate", FATES.values(), ids=FATES)
async def test_told_the_same_as_the_managers(fate: Fate, recorder: RecordingObserver) -> None:
    """Of its own task only, and nothing of the manager."""
    own = RecordingObserver()
    handle = await meet(fate, recorder, own)
    assert own.events == recorder.of(TaskEvent, handle.id)
    assert " ".join(own.names()) == fate.order


async def test_only_told_of_its_task() -> None:
    observers = [RecordingObserver(), RecordingObserver()]
    async with Manager() as manager:
        handles = [manager.run_task(Task(nap, observers=(each,))) for each in observers]
        await manager.run(fine)
    for observer, handle in zip(observers, handles, strict=True):
        assert observer.names() == observer.names(handle.id) == ["added", "started", "succeeded"]


async def test_standing_observers_are_told_first() -> None:
    order: list[str] = []

    class Named(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            order.append(self.name)

    async with Manager(observers=[Named("standing")]) as manager:
        await manager.run_task(Task(fine, observers=(Named("first"), Named("second"))))
    assert order == ["standing", "first", "second"]


async def test_observer_of_both_is_told_once(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder]) as manager:
        await manager.run_task(Task(fine, observers=(recorder, recorder)))
        await manager.run(fine)
    assert recorder.names()[:6] == ["added", "started", "succeeded"] * 2


async def test_observer_given_twice_is_told_once(recorder: RecordingObserver) -> None:
    async with Manager() as manager:
        await manager.run_task(Task(fine, observers=(recorder, recorder)))
    assert recorder.names() == ["added", "started", "succeeded"]


async def test_observer_of_several_tasks_at_once(recorder: RecordingObserver) -> None:
    async with Manager() as manager:
        handles = [manager.run_task(Task(nap, args=(n,), observers=(recorder,))) for n in (1, 2)]
        manager.run(fine)
    for handle in handles:
        assert recorder.names(handle.id) == ["added", "started", "succeeded"]
    assert len(recorder.events) == 6


async def test_observers_of_a_decorated_function(recorder: RecordingObserver) -> None:
    @task(observers=(recorder,))
    async def work() -> None:
        pass

    async with Manager() as manager:
        handle = manager.run(work)
        await handle
    assert recorder.names(handle.id) == ["added", "started", "succeeded"]


async def test_told_failure_is_not_logged(
    recorder: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    async with Manager() as manager:
        manager.run_task(Task(broken, observers=(recorder,)))
        manager.run(broken)
    assert recorder.names() == ["added", "started", "failed"]
    assert len(caplog.records) == 1


async def test_async_hooks_of_an_observer_that_leaves_with_its_task() -> None:
    """What is on its way to an observer reaches it, though its task has ended."""
    told: list[object] = []

    class Slow(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep(10)
            told.append(event)

        async def on_task_succeeded(self, event: TaskSucceeded) -> None:
            await anyio.sleep(10)
            told.append(event)

    async with Manager(cancel_timeout=30) as manager:
        await manager.run_task(Task(fine, observers=(Slow(),)))
        assert told == []
        await anyio.sleep(15)
        assert [type(event) for event in told] == [TaskAdded]
    assert [type(event) for event in told] == [TaskAdded, TaskSucceeded]


async def test_events_of_two_tasks_share_the_order_of_one_async_observer() -> None:
    """While an observer has something to catch up with, its next task's events come after that."""
    told: list[tuple[type, str]] = []

    class Slow(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep(10)
            told.append((type(event), event.id))

        async def on_task_succeeded(self, event: TaskSucceeded) -> None:
            told.append((type(event), event.id))

    observer = Slow()
    async with Manager(cancel_timeout=100) as manager:
        await manager.run_task(Task(fine, id="a", observers=(observer,)))
        await manager.run_task(Task(fine, id="b", observers=(observer,)))
    assert told == [
        (TaskAdded, "a"),
        (TaskSucceeded, "a"),
        (TaskAdded, "b"),
        (TaskSucceeded, "b"),
    ]


class Around(Observer):
    def __init__(self) -> None:
        self.entered: list[str] = []

    @contextmanager
    def around_task(self, event: TaskStarted) -> Generator[None]:
        self.entered.append(event.id)
        yield


async def test_around_task_is_around_its_task_only() -> None:
    around = Around()
    async with Manager() as manager:
        handle = manager.run_task(Task(nap, observers=(around,)))
        await manager.run(fine)
    assert around.entered == [handle.id]


def test_async_around_task_is_refused() -> None:
    class Wrong(Observer):
        async def around_task(self, event: TaskStarted) -> None:  # type: ignore[override]
            pass

    with pytest.raises(InvalidTaskError, match=r"^observers: Wrong\.around_task must be a def"):
        Task(fine, observers=(Wrong(),))


async def test_refused_task_leaves_nothing_behind(recorder: RecordingObserver) -> None:
    """An observer of a task that was not taken is told nothing and not kept."""
    async with Manager(capacity=1) as manager:
        handle = manager.run_task(Task(nap, id="one", observers=(recorder,)))
        observer = RecordingObserver()
        for id in ("one", "two"):
            with pytest.raises(Exception, match="outstanding"):
                manager.run_task(Task(nap, id=id, observers=(observer,)))
        gone = weakref.ref(observer)
        assert observer.events == []
        del observer
        gc.collect()
        assert gone() is None
        assert handle.cancel()


class Quiet(Observer):
    pass


class Plain(Observer):
    def on_task_succeeded(self, event: TaskSucceeded) -> None:
        pass

    def on_task_cancelled(self, event: TaskCancelled) -> None:
        pass


class Later(Observer):
    async def on_task_added(self, event: TaskAdded) -> None:
        await anyio.sleep(5)


class Raising(Observer):
    def on_task_added(self, event: TaskAdded) -> None:
        raise ValueError("broken hook")

    async def on_task_started(self, event: TaskStarted) -> None:
        raise ValueError("broken hook")


ENDS = {
    "succeeded": lambda manager, each: manager.run_task(Task(fine, observers=(each,))),
    "failed": lambda manager, each: manager.run_task(Task(broken, retry=TWICE, observers=(each,))),
    "cancelled": lambda manager, each: cancelled(manager.run_task(Task(nap, observers=(each,)))),
    "expired": lambda manager, each: manager.run_task(Task(nap, lifespan=1, observers=(each,))),
    "too many failures": lambda manager, each: manager.run_task(
        Task(broken, kind=LOOP, schedule=every(1), max_failures=2, observers=(each,))
    ),
}


def cancelled(handle: Any) -> Any:
    handle.cancel()
    return handle


@pytest.mark.parametrize("kind", [Quiet, Plain, Later, Raising, Around])
@pytest.mark.parametrize("end", ENDS)
async def test_observer_is_let_go_with_its_task(
    end: str, kind: type[Observer], caplog: pytest.LogCaptureFixture
) -> None:
    """An observer object for each task does not pile up in the manager."""
    # Records of errors would keep their tracebacks, and those everything else.
    caplog.set_level(logging.CRITICAL, "background")
    async with Manager() as manager:
        observer = kind()
        gone = weakref.ref(observer)
        await ENDS[end](manager, observer).wait()
        await anyio.sleep(20)
        del observer
        gc.collect()
        assert gone() is None
        assert await manager.run(fine) == "fine"


async def test_errors_of_an_observer_that_left_are_still_counted() -> None:
    async with Manager() as manager:
        for count in (2, 4):
            await manager.run_task(Task(fine, observers=(Raising(),)))
            await anyio.sleep(1)
            assert manager.health().hook_errors == count


async def test_error_on_leaving_the_context_of_the_last_task_is_counted() -> None:
    """An observer's last chance to go wrong comes after its task's end."""

    class RaisingAround(Observer):
        @contextmanager
        def around_task(self, event: TaskStarted) -> Generator[None]:
            yield
            raise ValueError("broken hook")

    async with Manager() as manager:
        await manager.run_task(Task(fine, observers=(RaisingAround(),)))
        await manager.wait()
        await anyio.sleep(1)
        assert manager.health().hook_errors == 1


@pytest.mark.parametrize("shared", [True, False], ids=["one object", "an object for each task"])
async def test_errors_are_logged_once_for_all_tasks(
    shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Observers that come along with many tasks, one after the other, do not flood the log."""
    observer = Raising()
    async with Manager() as manager:
        for _ in range(10):
            await manager.run_task(Task(fine, observers=(observer if shared else Raising(),)))
            await anyio.sleep(1)
        assert manager.health().hook_errors == 20
    messages = [record.getMessage().partition(" hook ")[2] for record in caplog.records]
    assert [".".join(message.split(".")[:2]) for message in messages] == [
        "Raising.on_task_added raised an exception",
        "Raising.on_task_started raised an exception",
        "Raising.on_task_added raised 10 exceptions in all",
        "Raising.on_task_started raised 10 exceptions in all",
    ]


async def test_manager_events_are_not_for_observers_of_tasks(recorder: RecordingObserver) -> None:
    own = RecordingObserver()
    async with Manager(observers=[recorder]) as manager:
        manager.after(5, nap)
        manager.run_task(Task(nap, delay=5, observers=(own,)))
        await manager.close()
    assert own.names() == ["added", "cancelled"]
    assert recorder.names() == ["added", "added", "closing", "cancelled", "cancelled", "closed"]


async def test_managers_share_an_observer(recorder: RecordingObserver) -> None:
    await everything_happens(recorder)
    once = recorder.names()
    await everything_happens(recorder)
    assert recorder.names() == once * 2


async def test_observer_of_a_task_that_another_observer_ends_at_once() -> None:
    """It is not let go before it has heard of what is still to be told."""
    kept: list[type] = []

    class Own(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep(1)
            kept.append(type(event))

        async def on_task_cancelled(self, event: TaskCancelled) -> None:
            await anyio.sleep(1)
            kept.append(type(event))

    class Cancelling(Observer):
        def on_task_added(self, event: TaskAdded) -> None:
            manager.cancel(event.id)

    async with Manager(observers=[Cancelling()]) as manager:
        manager.run_task(Task(nap, observers=(Own(),)))
    assert kept == [TaskAdded, TaskCancelled]


class ShutsDown(Observer):
    """Asks for a shutdown when a task is cancelled."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    def on_task_cancelled(self, event: object) -> None:
        self.manager.request_shutdown()


async def test_the_report_counts_no_task_whose_end_began_the_closing(
    recorder: RecordingObserver,
) -> None:
    async with Manager(observers=[recorder]) as manager:
        manager.request_shutdown()
        last = manager.run_task(Task(anyio.sleep, args=(9,), observers=(ShutsDown(manager),)))
        last.cancel()
        report = await manager.close()
    (closing,) = recorder.of(ManagerClosing)
    assert closing.outstanding == 0
    assert report == CloseReport()


async def test_a_task_that_closes_is_not_cancelled_by_what_closing_sets_off() -> None:
    async with Manager() as manager:
        manager.request_shutdown()
        manager.run_task(Task(anyio.sleep, args=(1,), delay=9, observers=(ShutsDown(manager),)))
        closer = manager.run(manager.close)
        assert await closer.wait() is TaskStatus.SUCCEEDED
