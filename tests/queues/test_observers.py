"""Who is told of jobs: observers of a queue, of a handler and of a manager, with one or without."""

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

PATIENCE = 10.0  # virtual seconds that leaving a queue may take, whatever its observers do


def telling(hook: Callable[[Any, Any], Any], name: str = "on_job_enqueued") -> Observer:
    return type("Telling", (Observer,), {name: hook})()


def make_queue(*observers: Observer) -> JobQueue:
    return JobQueue(MemoryBroker(), observers=observers)


# Without a manager


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_enqueueing_is_told_without_a_manager(kind: str) -> None:
    kept: list[JobEnqueued] = []

    def plain(self: Observer, event: JobEnqueued) -> None:
        kept.append(event)

    async def later(self: Observer, event: JobEnqueued) -> None:
        await anyio.sleep(1)
        kept.append(event)

    jobs = make_queue(telling(plain if kind == "def" else later))
    send = jobs.handler(name="send", queue="mail")(fine)
    async with jobs:
        first = await send.options(meta={"user": 7}, delay=5).enqueue()
        second = await jobs.enqueue("elsewhere")
        assert len(kept) == (2 if kind == "def" else 0)
    told = [(each.job.id, each.job.handler, each.job.queue, each.delay) for each in kept]
    assert told == [(first.id, "send", "mail", 5), (second.id, "elsewhere", "default", 0)]
    assert [each.job.attempt for each in kept] == [0, 0]
    assert [each.meta for each in kept] == [{"user": 7}, {}]
    assert [each.job.enqueued_at for each in kept] == [each.time for each in kept]


async def test_the_delay_of_a_job_that_is_due_at_a_time(recorder: RecordingObserver) -> None:
    jobs = make_queue(recorder)
    send = jobs.handler(name="send")(fine)
    async with jobs:
        await send.options(at=1.0).enqueue()
        past = recorder.of(JobEnqueued)[0]
        await send.options(at=past.time + 1_000_000).enqueue()
    assert past.delay == 0
    assert 999_000 < recorder.of(JobEnqueued)[1].delay <= 1_000_000


async def test_each_of_many_is_told(recorder: RecordingObserver) -> None:
    jobs = make_queue(recorder)
    send = jobs.handler(name="send")(fine)
    async with jobs:
        handles = await send.enqueue_many([()] * 3)
    assert [each.job.id for each in recorder.of(JobEnqueued)] == [each.id for each in handles]


async def test_observers_that_do_not_ask_are_not_told() -> None:
    kept: list[object] = []
    jobs = make_queue(telling(lambda self, event: kept.append(event), "on_job_dead"))
    async with jobs:
        await jobs.enqueue("send")
    assert kept == []


async def test_a_queue_without_observers_works() -> None:
    jobs = make_queue()
    async with jobs:
        assert await jobs.enqueue("send")
        assert await jobs.count() == 1


async def test_a_hook_that_hangs_does_not_keep_the_queue_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Leaving is bounded, and says what was not delivered."""
    started: list[object] = []

    async def hang(self: Observer, event: object) -> None:
        started.append(event)
        await anyio.sleep_forever()

    jobs = make_queue(telling(hang))
    async with jobs:
        await jobs.enqueue("send")
        await jobs.enqueue("send")
        await anyio.sleep(1)
        began = anyio.current_time()
    assert anyio.current_time() - began <= PATIENCE
    assert len(started) == 1
    assert any("2 events" in each.getMessage() for each in caplog.records)


async def test_a_hook_that_swallows_its_cancellation_does_not_either() -> None:
    async def stubborn(self: Observer, event: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1_000)

    jobs = make_queue(telling(stubborn))
    async with jobs:
        await jobs.enqueue("send")
        await anyio.sleep(1)
        began = anyio.current_time()
    assert anyio.current_time() - began <= PATIENCE
    await anyio.sleep(1_000)


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_a_hook_that_raises_harms_nothing(
    is_async: bool, recorder: RecordingObserver, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(self: Observer, event: object) -> None:
        raise ValueError("broken hook")

    async def later(self: Observer, event: object) -> None:
        raise ValueError("broken hook")

    jobs = make_queue(telling(later if is_async else plain), recorder)
    async with jobs:
        await jobs.enqueue("send")
        await jobs.enqueue("send")
    assert recorder.names() == ["enqueued", "enqueued"]
    messages = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert messages[0].startswith("Observer hook Telling.on_job_enqueued raised an exception")
    assert messages[1:] == ["Observer hook Telling.on_job_enqueued raised 2 exceptions in all."]


async def test_a_def_hook_that_ends_the_program() -> None:
    """`SystemExit` comes from where the job was enqueued, after that has been done."""

    def leave(self: Observer, event: object) -> None:
        raise SystemExit(3)

    jobs = make_queue(telling(leave))
    with pytest.raises(SystemExit):
        async with jobs:
            try:
                await jobs.enqueue("send")
            finally:
                assert await jobs.count() == 1


@pytest.mark.parametrize("again", [True, False])
async def test_an_async_hook_that_ends_the_program(again: bool) -> None:
    """`SystemExit` comes from where the next job is enqueued, or from the end of the block."""

    async def leave(self: Observer, event: object) -> None:
        raise SystemExit(3)

    jobs = make_queue(telling(leave))
    reached: list[str] = []
    with pytest.raises(SystemExit):
        async with jobs:
            await jobs.enqueue("send")
            if again:
                await anyio.sleep(1)
                await jobs.enqueue("send")
            reached.append("the end")
    assert reached == ([] if again else ["the end"])
    async with jobs:  # it has been closed
        pass


async def test_an_error_is_not_replaced_by_that_of_a_hook() -> None:
    """What leaves the block is what ends the program, with the block's own error as its context."""

    async def leave(self: Observer, event: object) -> None:
        raise SystemExit(3)

    async def use() -> None:
        async with make_queue(telling(leave)) as jobs:
            await jobs.enqueue("send")
            raise ValueError("of the block")

    with pytest.raises(SystemExit) as caught:
        await use()
    assert isinstance(caught.value.__context__, ValueError)


# With a manager


@pytest.mark.parametrize("place", ["queue", "handler", "both"])
async def test_an_observer_that_the_manager_has_too_is_told_once(
    place: str, recorder: RecordingObserver
) -> None:
    jobs = make_queue(*([recorder] if place != "handler" else []))
    own = [recorder] if place != "queue" else []
    send = jobs.handler(name="send", observers=own)(fine)
    async with Manager(observers=[recorder]) as manager, jobs:
        await jobs.start(manager)
        await (await send.enqueue()).wait()
        await manager.wait()
    names = ["enqueued", "added", "started", "succeeded", "closing", "closed"]
    assert recorder.names() == names


async def test_an_observer_of_the_queue_is_told_of_its_jobs_alone(
    manager: Manager, recorder: RecordingObserver
) -> None:
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


async def test_an_observer_of_a_handler_is_told_of_its_jobs_alone(manager: Manager) -> None:
    own, other = RecordingObserver(), RecordingObserver()
    jobs = make_queue()
    dies = jobs.handler(name="dies", observers=[own])(broken)
    works = jobs.handler(name="works", observers=[other])(fine)
    async with jobs:
        await jobs.start(manager)
        await (await dies.enqueue()).wait()
        await (await works.enqueue()).wait()
        await (await jobs.enqueue("works")).wait()
        await manager.wait()
    assert own.names() == ["enqueued", "added", "started", "failed", "dead"]
    assert other.names() == ["enqueued", "added", "started", "succeeded"] * 2


async def test_two_managers_tell_an_observer_once() -> None:
    """Be it the queue's, or that of one of them or of both."""
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
    for each in (shared, first_only, second_only):
        assert each.names().count("enqueued") == 1


async def test_after_the_manager_has_closed_the_queue_tells_by_itself(
    recorder: RecordingObserver,
) -> None:
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


async def test_several_workers_of_a_manager_tell_once(
    manager: Manager, recorder: RecordingObserver
) -> None:
    jobs = make_queue()
    send = jobs.handler(name="send")(fine)
    async with jobs:
        await jobs.start(manager)
        await jobs.start(manager)
        await send.enqueue()
    assert recorder.names().count("enqueued") == 1


async def test_steps_are_told_of_with_their_own_observers_and_meta(
    recorder: RecordingObserver,
) -> None:
    """As those of jobs that are enqueued one by one, be it alone or in a composite."""
    own = RecordingObserver()
    jobs = make_queue(recorder)
    mine = jobs.handler(name="mine", observers=[own])(fine)
    other = jobs.handler(name="other")(fine)
    async with jobs:
        step = mine.options(meta={"n": 1}, delay=3).job()
        await jobs.enqueue(step)
        await jobs.enqueue(chain(step, group(other.job(), mine.options(meta={"n": 2}).job())))
    told = [(each.job.handler, each.meta.get("n"), each.delay) for each in own.of(JobEnqueued)]
    assert told == [("mine", 1, 3), ("mine", 1, 3), ("mine", 2, 0)]
    all_told = [(each.job.handler, each.meta.get("n")) for each in recorder.of(JobEnqueued)]
    assert all_told == [
        ("mine", 1),
        ("mine", 1),
        ("other", None),
        ("mine", 2),
        ("", None),  # what stands for the composite
    ]


async def test_a_job_of_an_unknown_handler_is_told_to_be_dead(
    manager: Manager, recorder: RecordingObserver
) -> None:
    jobs = make_queue()
    jobs.handler(name="known")(fine)
    async with jobs:
        await jobs.start(manager)
        job = await jobs.enqueue("unknown")
        assert await job.wait() is JobState.DEAD
    (dead,) = recorder.of(JobDead)
    assert (dead.job.id, dead.job.handler, dead.job.attempt) == (job.id, "unknown", 1)
    assert type(dead.error).__name__ == "UnknownHandlerError"


# What observers can't be


@pytest.mark.parametrize("place", ["queue", "handler"])
def test_observers_that_watch_are_refused(place: str) -> None:
    """Nobody would run their service."""
    with pytest.raises(
        ValueError, match=r"^observers: StallObserver implements watch\(\): pass it to"
    ):
        if place == "queue":
            make_queue(StallObserver(1))
        else:
            make_queue().handler(observers=[StallObserver(1)])


@pytest.mark.parametrize("observers", [1, [1], [Observer], "x"])
def test_what_is_no_observer_is_refused(observers: Any) -> None:
    with pytest.raises(ValueError, match="observers"):
        JobQueue(MemoryBroker(), observers=observers)
    with pytest.raises(ValueError, match="observers"):
        make_queue().handler(observers=observers)


# Beside that


async def test_handles_say_which_job_they_run(manager: Manager) -> None:
    jobs = make_queue()
    seen: list[Any] = []

    async def look() -> None:
        seen.extend(manager.tasks())

    handler = jobs.handler(name="look", queue="mail")(look)
    async with jobs:
        await jobs.start(manager)
        job = await handler.enqueue()
        await job.wait()
        await manager.wait()
    (handle,) = seen
    assert (handle.id, handle.job.id, handle.job.handler) == (job.id, job.id, "look")
    assert (handle.job.queue, handle.job.attempt, handle.attempt) == ("mail", 1, 1)
    assert handle.status is TaskStatus.SUCCEEDED


async def test_observers_of_handlers_are_kept_no_longer_than_needed(manager: Manager) -> None:
    """Neither by the queue nor by a manager, also where a hook is slow."""
    told: list[object] = []

    async def later(self: Observer, event: object) -> None:
        await anyio.sleep(1)
        told.append(event)

    jobs = make_queue()
    send = jobs.handler(name="send", observers=[telling(later)])(fine)
    async with jobs:
        await send.enqueue()
        await anyio.sleep(2)
        kept = jobs._enqueuer._opened()[0]._guests
        await jobs.start(manager)
        await (await send.enqueue()).wait()
        await anyio.sleep(2)
        assert kept == manager._runtime.dispatcher._guests == {}  # type: ignore[union-attr]
    assert len(told) == 2
