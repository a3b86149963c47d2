"""Observers of single tasks."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from support.outcomes import (
    LOOP,
    SCENARIOS,
    TWICE,
    Scenario,
    broken,
    call_every_hook,
    fine,
    nap,
    play,
)

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


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_same_events(scenario: Scenario, recorder: RecordingObserver) -> None:
    """A task's observer receives the same events of the task as the manager's observer."""
    own = RecordingObserver()
    handle = await play(scenario, recorder, own)
    assert own.events == recorder.of(TaskEvent, handle.id)
    assert " ".join(own.names()) == scenario.order


async def test_events_of_own_task_only() -> None:
    """A task's observer receives no events of other tasks."""
    observers = [RecordingObserver(), RecordingObserver()]
    async with Manager() as manager:
        handles = [manager.run_task(Task(nap, observers=(observer,))) for observer in observers]
        await manager.run(fine)
    for observer, handle in zip(observers, handles, strict=True):
        assert observer.names() == observer.names(handle.id) == ["added", "started", "succeeded"]


async def test_order_of_observers() -> None:
    """The manager's observers are called before the task's."""
    order: list[str] = []

    class Named(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            order.append(self.name)

    async with Manager(observers=[Named("manager's")]) as manager:
        await manager.run_task(Task(fine, observers=(Named("first"), Named("second"))))
    assert order == ["manager's", "first", "second"]


async def test_observer_of_manager_and_task(recorder: RecordingObserver) -> None:
    """An observer of the manager and of a task receives an event once."""
    async with Manager(observers=[recorder]) as manager:
        await manager.run_task(Task(fine, observers=(recorder, recorder)))
        await manager.run(fine)
    assert recorder.names()[:6] == ["added", "started", "succeeded"] * 2


async def test_duplicate_observer(recorder: RecordingObserver) -> None:
    """An observer that is passed twice receives an event once."""
    async with Manager() as manager:
        await manager.run_task(Task(fine, observers=(recorder, recorder)))
    assert recorder.names() == ["added", "started", "succeeded"]


async def test_observer_of_several_tasks(recorder: RecordingObserver) -> None:
    """Tasks that run at the same time can share an observer."""
    async with Manager() as manager:
        handles = [manager.run_task(Task(nap, args=(n,), observers=(recorder,))) for n in (1, 2)]
        manager.run(fine)
    for handle in handles:
        assert recorder.names(handle.id) == ["added", "started", "succeeded"]
    assert len(recorder.events) == 6


async def test_decorated_function(recorder: RecordingObserver) -> None:
    """The `task` decorator accepts observers."""

    @task(observers=(recorder,))
    async def work() -> None:
        pass

    async with Manager() as manager:
        handle = manager.run(work)
        await handle
    assert recorder.names(handle.id) == ["added", "started", "succeeded"]


async def test_reported_failure(
    recorder: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that a task's observer receives is not logged."""
    async with Manager() as manager:
        manager.run_task(Task(broken, observers=(recorder,)))
        manager.run(broken)
    assert recorder.names() == ["added", "started", "failed"]
    assert len(caplog.records) == 1


async def test_pending_events_after_task() -> None:
    """A task's observer receives its pending events after the task has ended."""
    received: list[object] = []

    class Slow(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep(10)
            received.append(event)

        async def on_task_succeeded(self, event: TaskSucceeded) -> None:
            await anyio.sleep(10)
            received.append(event)

    async with Manager(cancel_timeout=30) as manager:
        await manager.run_task(Task(fine, observers=(Slow(),)))
        assert received == []
        await anyio.sleep(15)
        assert [type(event) for event in received] == [TaskAdded]
    assert [type(event) for event in received] == [TaskAdded, TaskSucceeded]


async def test_order_across_tasks() -> None:
    """An observer receives the pending events of a task before those of its next task."""
    received: list[tuple[type, str]] = []

    class Slow(Observer):
        async def on_task_added(self, event: TaskAdded) -> None:
            await anyio.sleep(10)
            received.append((type(event), event.id))

        async def on_task_succeeded(self, event: TaskSucceeded) -> None:
            received.append((type(event), event.id))

    observer = Slow()
    async with Manager(cancel_timeout=100) as manager:
        await manager.run_task(Task(fine, id="a", observers=(observer,)))
        await manager.run_task(Task(fine, id="b", observers=(observer,)))
    assert received == [
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


async def test_around_task() -> None:
    """`around_task` of a task's observer is called for that task only."""
    around = Around()
    async with Manager() as manager:
        handle = manager.run_task(Task(nap, observers=(around,)))
        await manager.run(fine)
    assert around.entered == [handle.id]


def test_async_around_task() -> None:
    """An observer with an `async def around_task` is refused."""

    class Wrong(Observer):
        async def around_task(self, event: TaskStarted) -> None:  # type: ignore[override]
            pass

    with pytest.raises(InvalidTaskError, match=r"^observers: Wrong\.around_task must be a def"):
        Task(fine, observers=(Wrong(),))


async def test_refused_task(recorder: RecordingObserver) -> None:
    """The observer of a refused task receives no events and is not stored."""
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
    "succeeded": lambda manager, observer: manager.run_task(Task(fine, observers=(observer,))),
    "failed": lambda manager, observer: manager.run_task(
        Task(broken, retry=TWICE, observers=(observer,))
    ),
    "cancelled": lambda manager, observer: cancel(
        manager.run_task(Task(nap, observers=(observer,)))
    ),
    "expired": lambda manager, observer: manager.run_task(
        Task(nap, lifespan=1, observers=(observer,))
    ),
    "too many failures": lambda manager, observer: manager.run_task(
        Task(broken, kind=LOOP, schedule=every(1), max_failures=2, observers=(observer,))
    ),
}


def cancel(handle: Any) -> Any:
    handle.cancel()
    return handle


@pytest.mark.parametrize("kind", [Quiet, Plain, Later, Raising, Around])
@pytest.mark.parametrize("end", ENDS)
async def test_observer_is_released(
    end: str, kind: type[Observer], caplog: pytest.LogCaptureFixture
) -> None:
    """The manager releases a task's observer after the task's end."""
    # Log records of errors have tracebacks, which refer to the observer.
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


async def test_errors_of_released_observer() -> None:
    """Errors of a task's observer are still counted after it is released."""
    async with Manager() as manager:
        for count in (2, 4):
            await manager.run_task(Task(fine, observers=(Raising(),)))
            await anyio.sleep(1)
            assert manager.health().hook_errors == count


async def test_error_after_task_end() -> None:
    """An error on leaving `around_task` is counted, although it follows the task's end."""

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
async def test_errors_logged_once(shared: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Errors of the same hook in the observers of many tasks are logged once, with a summary."""
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


async def test_no_manager_events(recorder: RecordingObserver) -> None:
    """A task's observer receives no events of the manager."""
    own = RecordingObserver()
    async with Manager(observers=[recorder]) as manager:
        manager.after(5, nap)
        manager.run_task(Task(nap, delay=5, observers=(own,)))
        await manager.close()
    assert own.names() == ["added", "cancelled"]
    assert recorder.names() == ["added", "added", "closing", "cancelled", "cancelled", "closed"]


async def test_shared_by_managers(recorder: RecordingObserver) -> None:
    """Consecutive managers can share an observer."""
    await call_every_hook(recorder)
    once = recorder.names()
    await call_every_hook(recorder)
    assert recorder.names() == once * 2


async def test_task_cancelled_by_manager_observer() -> None:
    """A task's observer receives all events if a hook of the manager's cancels the new task."""
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


class ShuttingDown(Observer):
    """Requests a shutdown when a task is cancelled."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    def on_task_cancelled(self, event: object) -> None:
        self.manager.request_shutdown()


async def test_report_without_ended_task(recorder: RecordingObserver) -> None:
    """The report does not include a task whose end started the closing."""
    async with Manager(observers=[recorder]) as manager:
        manager.request_shutdown()
        last = manager.run_task(Task(anyio.sleep, args=(9,), observers=(ShuttingDown(manager),)))
        last.cancel()
        report = await manager.close()
    (closing,) = recorder.of(ManagerClosing)
    assert closing.outstanding == 0
    assert report == CloseReport()


async def test_closing_task_not_cancelled() -> None:
    """A task that closes is not cancelled by a shutdown request that the closing causes."""
    async with Manager() as manager:
        manager.request_shutdown()
        manager.run_task(Task(anyio.sleep, args=(1,), delay=9, observers=(ShuttingDown(manager),)))
        closer = manager.run(manager.close)
        assert await closer.wait() is TaskStatus.SUCCEEDED
