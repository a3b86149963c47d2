"""Observers of queues, of handlers and of managers with workers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.outcomes import broken, fine

from background import JobDead, JobEnqueued, Manager, Observer, TaskStatus
from background.observers import StallObserver
from background.queues import JobQueue, JobState, chain, group
from background.queues.memory import MemoryBroker
from background.testing import RecordingObserver

EXIT_TIMEOUT = 10.0  # virtual seconds that a queue's exit may take with any observers


def make_observer(hook: Callable[[Any, Any], Any], name: str = "on_job_enqueued") -> Observer:
    return type("HookObserver", (Observer,), {name: hook})()


def make_queue(*observers: Observer) -> JobQueue:
    return JobQueue(MemoryBroker(), observers=observers)


# Without a manager


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_enqueued_event(kind: str) -> None:
    """A queue notifies its observers without a manager, and completes async hooks on exit."""
    events: list[JobEnqueued] = []

    def sync_hook(self: Observer, event: JobEnqueued) -> None:
        events.append(event)

    async def async_hook(self: Observer, event: JobEnqueued) -> None:
        await anyio.sleep(1)
        events.append(event)

    jobs = make_queue(make_observer(sync_hook if kind == "def" else async_hook))
    send = jobs.handler(name="send", queue="mail")(fine)
    async with jobs:
        first = await send.options(meta={"user": 7}, delay=5).enqueue()
        second = await jobs.enqueue("elsewhere")
        assert len(events) == (2 if kind == "def" else 0)
    jobs_seen = [
        (event.job.id, event.job.handler, event.job.queue, event.delay) for event in events
    ]
    assert jobs_seen == [(first.id, "send", "mail", 5), (second.id, "elsewhere", "default", 0)]
    assert [event.job.attempt for event in events] == [0, 0]
    assert [event.meta for event in events] == [{"user": 7}, {}]
    assert [event.job.enqueued_at for event in events] == [event.time for event in events]


async def test_enqueued_event_delay(recorder: RecordingObserver) -> None:
    """The delay of an event is the time until `at`, or zero if that has passed."""
    jobs = make_queue(recorder)
    send = jobs.handler(name="send")(fine)
    async with jobs:
        await send.options(at=1.0).enqueue()
        past = recorder.of(JobEnqueued)[0]
        await send.options(at=past.time + 1_000_000).enqueue()
    assert past.delay == 0
    assert 999_000 < recorder.of(JobEnqueued)[1].delay <= 1_000_000


async def test_enqueue_many(recorder: RecordingObserver) -> None:
    """Observers receive one event for every job of enqueue_many()."""
    jobs = make_queue(recorder)
    send = jobs.handler(name="send")(fine)
    async with jobs:
        handles = await send.enqueue_many([()] * 3)
    assert [event.job.id for event in recorder.of(JobEnqueued)] == [job.id for job in handles]


async def test_other_hook() -> None:
    """An observer doesn't receive events whose hooks it doesn't implement."""
    events: list[object] = []
    jobs = make_queue(make_observer(lambda self, event: events.append(event), "on_job_dead"))
    async with jobs:
        await jobs.enqueue("send")
    assert events == []


async def test_no_observers() -> None:
    """A queue without observers enqueues jobs."""
    jobs = make_queue()
    async with jobs:
        assert await jobs.enqueue("send")
        assert await jobs.count() == 1


async def test_hanging_hook(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A queue's exit waits a limited time for a hook, and logs how many events were dropped."""
    started: list[object] = []

    async def hang(self: Observer, event: object) -> None:
        started.append(event)
        await anyio.sleep_forever()

    jobs = make_queue(make_observer(hang))
    async with jobs:
        await jobs.enqueue("send")
        await jobs.enqueue("send")
        await anyio.sleep(1)
        began = anyio.current_time()
    assert anyio.current_time() - began <= EXIT_TIMEOUT
    assert len(started) == 1
    assert any("2 events" in record.getMessage() for record in caplog.records)


async def test_uncancellable_hook() -> None:
    """A queue's exit waits a limited time for a hook that ignores its cancellation."""

    async def stubborn(self: Observer, event: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1_000)

    jobs = make_queue(make_observer(stubborn))
    async with jobs:
        await jobs.enqueue("send")
        await anyio.sleep(1)
        began = anyio.current_time()
    assert anyio.current_time() - began <= EXIT_TIMEOUT
    await anyio.sleep(1_000)


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_raising_hook(
    is_async: bool, recorder: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook's exceptions are logged and counted; jobs and further observers are unaffected."""

    def sync_hook(self: Observer, event: object) -> None:
        raise ValueError("broken hook")

    async def async_hook(self: Observer, event: object) -> None:
        raise ValueError("broken hook")

    jobs = make_queue(make_observer(async_hook if is_async else sync_hook), recorder)
    async with jobs:
        await jobs.enqueue("send")
        await jobs.enqueue("send")
    assert recorder.names() == ["enqueued", "enqueued"]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert messages[0].startswith("Observer hook HookObserver.on_job_enqueued raised an exception")
    assert messages[1:] == [
        "Observer hook HookObserver.on_job_enqueued raised 2 exceptions in all."
    ]


async def test_exit_in_sync_hook() -> None:
    """enqueue() raises a sync hook's SystemExit after the job was stored."""

    def exit_program(self: Observer, event: object) -> None:
        raise SystemExit(3)

    jobs = make_queue(make_observer(exit_program))
    with pytest.raises(SystemExit):
        async with jobs:
            try:
                await jobs.enqueue("send")
            finally:
                assert await jobs.count() == 1


@pytest.mark.parametrize("again", [True, False])
async def test_exit_in_async_hook(again: bool) -> None:
    """The next enqueue() or the queue's exit raises an async hook's SystemExit."""

    async def exit_program(self: Observer, event: object) -> None:
        raise SystemExit(3)

    jobs = make_queue(make_observer(exit_program))
    reached: list[str] = []
    with pytest.raises(SystemExit):
        async with jobs:
            await jobs.enqueue("send")
            if again:
                await anyio.sleep(1)
                await jobs.enqueue("send")
            reached.append("the end")
    assert reached == ([] if again else ["the end"])
    async with jobs:  # it was closed
        pass


async def test_exit_with_block_error() -> None:
    """A hook's SystemExit has the exception of the queue's block as its context."""

    async def exit_program(self: Observer, event: object) -> None:
        raise SystemExit(3)

    async def use() -> None:
        async with make_queue(make_observer(exit_program)) as jobs:
            await jobs.enqueue("send")
            raise ValueError("of the block")

    with pytest.raises(SystemExit) as caught:
        await use()
    assert isinstance(caught.value.__context__, ValueError)


# With a manager


@pytest.mark.parametrize("place", ["queue", "handler", "both"])
async def test_shared_observer(place: str, recorder: RecordingObserver) -> None:
    """An observer of the manager and of the queue or handler receives every event once."""
    jobs = make_queue(*([recorder] if place != "handler" else []))
    own = [recorder] if place != "queue" else []
    send = jobs.handler(name="send", observers=own)(fine)
    async with Manager(observers=[recorder]) as manager, jobs:
        await jobs.start(manager)
        await (await send.enqueue()).wait()
        await manager.wait()
    names = ["enqueued", "added", "started", "succeeded", "closing", "closed"]
    assert recorder.names() == names


async def test_queue_observer(manager: Manager, recorder: RecordingObserver) -> None:
    """A queue's observer receives the events of the queue's jobs only."""
    own = RecordingObserver()
    jobs = make_queue(own)
    dies = jobs.handler(name="dies")(broken)
    async with jobs:
        await jobs.start(manager)
        await manager.run(fine)
        await (await dies.enqueue()).wait()
        await manager.wait()
    assert own.names() == ["enqueued", "added", "started", "failed", "dead"]
    assert [name for name in recorder.names() if name in ("enqueued", "dead")] == own.names()[::4]


async def test_handler_observer(manager: Manager) -> None:
    """A handler's observer receives the events of the handler's jobs only."""
    dead_observer, succeeded_observer = RecordingObserver(), RecordingObserver()
    jobs = make_queue()
    dies = jobs.handler(name="dies", observers=[dead_observer])(broken)
    works = jobs.handler(name="works", observers=[succeeded_observer])(fine)
    async with jobs:
        await jobs.start(manager)
        await (await dies.enqueue()).wait()
        await (await works.enqueue()).wait()
        await (await jobs.enqueue("works")).wait()
        await manager.wait()
    assert dead_observer.names() == ["enqueued", "added", "started", "failed", "dead"]
    assert succeeded_observer.names() == ["enqueued", "added", "started", "succeeded"] * 2


async def test_two_managers() -> None:
    """An observer of a queue, or of one or both of its managers, receives an event once."""
    shared, first_only, second_only = (RecordingObserver() for _ in range(3))
    jobs = make_queue(shared)
    send = jobs.handler(name="send")(fine)
    async with (
        Manager(name="first", observers=[first_only]) as first,
        Manager(name="second", observers=[shared, second_only]) as second,
        jobs,
    ):
        await jobs.start(first)
        await jobs.start(second)
        await (await send.enqueue()).wait()
    for observer in (shared, first_only, second_only):
        assert observer.names().count("enqueued") == 1


async def test_event_after_manager_close(
    recorder: RecordingObserver,
) -> None:
    """A queue notifies its own observers after its manager has closed."""
    own = RecordingObserver()
    jobs = make_queue(own)
    send = jobs.handler(name="send")(fine)
    async with jobs:
        async with Manager(observers=[recorder]) as manager:
            await jobs.start(manager)
            await send.enqueue()
            await manager.close()
        await send.enqueue()
    assert recorder.names().count("enqueued") == 1
    assert own.names().count("enqueued") == 2


async def test_two_workers(manager: Manager, recorder: RecordingObserver) -> None:
    """A manager with two workers notifies its observers once."""
    jobs = make_queue()
    send = jobs.handler(name="send")(fine)
    async with jobs:
        await jobs.start(manager)
        await jobs.start(manager)
        await send.enqueue()
    assert recorder.names().count("enqueued") == 1


async def test_steps(
    recorder: RecordingObserver,
) -> None:
    """A step's event has the step's meta, and goes to its handler's observers.

    This holds for a step that is enqueued alone and for steps of chains and groups.
    """
    own = RecordingObserver()
    jobs = make_queue(recorder)
    observed = jobs.handler(name="observed", observers=[own])(fine)
    other = jobs.handler(name="other")(fine)
    async with jobs:
        step = observed.options(meta={"n": 1}, delay=3).job()
        await jobs.enqueue(step)
        await jobs.enqueue(chain(step, group(other.job(), observed.options(meta={"n": 2}).job())))
    steps = [(event.job.handler, event.meta.get("n"), event.delay) for event in own.of(JobEnqueued)]
    assert steps == [("observed", 1, 3), ("observed", 1, 3), ("observed", 2, 0)]
    all_jobs = [(event.job.handler, event.meta.get("n")) for event in recorder.of(JobEnqueued)]
    assert all_jobs == [
        ("observed", 1),
        ("observed", 1),
        ("other", None),
        ("observed", 2),
        ("", None),  # the chain itself
    ]


async def test_unknown_handler(manager: Manager, recorder: RecordingObserver) -> None:
    """Observers are notified of the dead job of an unknown handler."""
    jobs = JobQueue(MemoryBroker(), unknown_for=0)
    jobs.handler(name="send")(fine)
    async with jobs:
        await jobs.start(manager)
        job = await jobs.enqueue("unknown")
        assert await job.wait() is JobState.DEAD
    (dead,) = recorder.of(JobDead)
    assert (dead.job.id, dead.job.handler, dead.job.attempt) == (job.id, "unknown", 1)
    assert type(dead.error).__name__ == "UnknownHandlerError"


# Invalid observers


@pytest.mark.parametrize("place", ["queue", "handler"])
def test_watching_observers(place: str) -> None:
    """Observers that implement watch() are rejected, as only a manager runs it."""
    with pytest.raises(
        ValueError, match=r"^observers: StallObserver implements watch\(\): pass it to"
    ):
        if place == "queue":
            make_queue(StallObserver(1))
        else:
            make_queue().handler(observers=[StallObserver(1)])


@pytest.mark.parametrize("observers", [1, [1], [Observer], "x"])
def test_invalid_observers(observers: Any) -> None:
    """Objects that are no observers are rejected."""
    with pytest.raises(ValueError, match="observers"):
        JobQueue(MemoryBroker(), observers=observers)
    with pytest.raises(ValueError, match="observers"):
        make_queue().handler(observers=observers)


# Handles and references


async def test_task_handle(manager: Manager) -> None:
    """A job's task handle has the job's id, handler, queue and attempt."""
    jobs = make_queue()
    seen: list[Any] = []

    async def list_tasks() -> None:
        seen.extend(manager.tasks())

    handler = jobs.handler(name="list", queue="mail")(list_tasks)
    async with jobs:
        await jobs.start(manager)
        job = await handler.enqueue()
        await job.wait()
        await manager.wait()
    (handle,) = seen
    assert (handle.id, handle.job.id, handle.job.handler) == (job.id, job.id, "list")
    assert (handle.job.queue, handle.job.attempt, handle.attempt) == ("mail", 1, 1)
    assert handle.status is TaskStatus.SUCCEEDED


async def test_handler_observers_released(manager: Manager) -> None:
    """Queues and managers release a handler's observers when their hooks have ended."""
    events: list[object] = []

    async def async_hook(self: Observer, event: object) -> None:
        await anyio.sleep(1)
        events.append(event)

    jobs = make_queue()
    send = jobs.handler(name="send", observers=[make_observer(async_hook)])(fine)
    async with jobs:
        await send.enqueue()
        await anyio.sleep(2)
        retained = jobs._enqueuer._own[0]._task_subscribers
        await jobs.start(manager)
        await (await send.enqueue()).wait()
        await anyio.sleep(2)
        assert retained == manager._runtime.dispatcher._task_subscribers == {}  # type: ignore[union-attr]
    assert len(events) == 2
