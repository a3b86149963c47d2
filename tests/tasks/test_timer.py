"""The timer: starts, cancellation and expiry of waiting tasks, and their memory use."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint, current_token

from background import (
    Manager,
    Observer,
    Task,
    TaskCancelled,
    TaskCancelledError,
    TaskEvent,
    TaskExpired,
    TaskExpiredError,
    TaskHandle,
    TaskKind,
    TaskStarted,
    TaskStatus,
    cron,
    every,
)
from background.testing import RecordingObserver


def count_native_tasks(backend_name: str) -> int:
    if backend_name == "asyncio":
        return len(asyncio.all_tasks())
    import trio

    def count(task: Any) -> int:
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return 1 + sum(count(child) for child in children)

    return count(trio.lowlevel.current_root_task())


def count_native_timers(backend_name: str) -> int:
    """Return the number of timers in the event loop itself."""
    if backend_name == "asyncio":
        loop: Any = asyncio.get_running_loop()
        return sum(not timer.cancelled() for timer in loop._scheduled)
    import trio

    finite = trio.lowlevel.current_statistics().seconds_to_next_deadline < math.inf
    return int(finite)


async def yield_to_tasks() -> None:
    for _ in range(10):
        await checkpoint()


def submit_delayed(manager: Manager) -> None:
    manager.after(3600, anyio.sleep_forever)


def submit_scheduled(manager: Manager) -> None:
    manager.every(3600, checkpoint)


def submit_cron(manager: Manager) -> None:
    manager.cron("0 3 * * *", checkpoint)


def submit_delayed_loop(manager: Manager) -> None:
    manager.run_task(Task(checkpoint, kind=TaskKind.LOOP, delay=3600))


def submit_with_lifespan(manager: Manager) -> None:
    manager.run_task(Task(checkpoint, delay=3600, lifespan=7200))


def submit_in_backoff(manager: Manager) -> None:
    async def fail() -> None:
        raise ValueError

    manager.loop(fail)


@pytest.mark.parametrize(
    "submit",
    [
        submit_delayed,
        submit_scheduled,
        submit_cron,
        submit_delayed_loop,
        submit_with_lifespan,
        submit_in_backoff,
    ],
)
async def test_waiting_tasks_share_timer(
    anyio_backend_name: str, submit: Callable[[Manager], None]
) -> None:
    """Waiting tasks need no native tasks, and only one native timer together."""

    def backoff(state: Any) -> float:
        return 3600

    async with Manager(loop_backoff=backoff, observers=[SilentObserver()]) as manager:  # type: ignore[arg-type]
        submit(manager)
        await yield_to_tasks()
        tasks = count_native_tasks(anyio_backend_name)
        timers = count_native_timers(anyio_backend_name)
        for _ in range(200):
            submit(manager)
        await yield_to_tasks()
        assert count_native_tasks(anyio_backend_name) == tasks
        assert count_native_timers(anyio_backend_name) == timers == 1
        assert manager.count() == 201
        assert {handle.status for handle in manager.tasks()} == {TaskStatus.WAITING}
        await manager.close(timeout=0)


class SilentObserver(Observer):
    """An observer that handles failures, so they are not logged."""

    def on_task_failed(self, event: TaskEvent) -> None:
        pass


async def test_queued_tasks_need_no_native_tasks(anyio_backend_name: str) -> None:
    """Queued tasks need no native tasks."""
    async with Manager(limit=1) as manager:
        manager.run(anyio.sleep_forever)
        await yield_to_tasks()
        before = count_native_tasks(anyio_backend_name)
        for _ in range(200):
            manager.run(checkpoint)
        await yield_to_tasks()
        assert count_native_tasks(anyio_backend_name) == before
        await manager.close(timeout=0)


async def test_sleep_until_due(anyio_backend_name: str) -> None:
    """The event loop sleeps until the next task is due."""
    async with Manager() as manager:
        for second in (1000, 2000):
            for _ in range(100):
                manager.after(second, checkpoint)
        began = anyio.current_time()
        await manager.wait()
        assert anyio.current_time() - began == pytest.approx(2000)


# Starts


async def test_start_order(manager: Manager) -> None:
    """Delayed tasks start on time and in the order of their due times."""
    seed = random.randrange(2**32)
    delays = random.Random(seed).sample(range(1, 1000), k=200)
    began = anyio.current_time()
    started: list[tuple[float, int, int]] = []

    async def record_start(delay: int, number: int) -> None:
        started.append((anyio.current_time() - began, delay, number))

    for number, delay in enumerate(delays):
        manager.after(delay, record_start, delay, number)
    await manager.wait()
    assert [start for start, _, _ in started] == [
        pytest.approx(delay) for _, delay, _ in started
    ], f"seed {seed}"
    in_order = sorted(range(200), key=lambda number: delays[number])
    assert [number for _, _, number in started] == in_order, f"seed {seed}"


async def test_earlier_task(manager: Manager) -> None:
    """A task that is due earlier than all others starts on time."""
    began = anyio.current_time()
    later = manager.after(100, checkpoint)
    await yield_to_tasks()
    sooner = manager.after(10, checkpoint)
    await sooner
    assert anyio.current_time() - began == pytest.approx(10)
    await later
    assert anyio.current_time() - began == pytest.approx(100)


async def test_many_entries_due_at_once() -> None:
    """The timer yields to other tasks after some hundred entries that are due."""
    async with Manager(limit=1) as manager:
        manager.run(anyio.sleep_forever)
        handles = [manager.run_task(Task(checkpoint, lifespan=10)) for _ in range(2000)]
        assert await handles[0].wait() is TaskStatus.EXPIRED
        left = manager.count()
        await anyio.sleep(1)
        left_later = manager.count()
        await manager.close(timeout=0)
    assert left > 1000
    assert left_later == 1


async def test_zero_delay(manager: Manager, recorder: RecordingObserver) -> None:
    """A task with a delay of zero starts without queueing time."""
    await manager.after(0, checkpoint)
    assert recorder.of(TaskStarted)[0].queued_for == 0


async def test_delay_and_queued_for(
    recorder: RecordingObserver,
) -> None:
    """The added event has the delay, and the started event has the time in the queue."""
    async with Manager(limit=1, observers=[recorder]) as manager:
        manager.run(anyio.sleep, 30)
        await manager.after(10, checkpoint)
    assert [getattr(event, "delay", None) for event in recorder.events[:2]] == [0, 10]
    assert [event.queued_for for event in recorder.of(TaskStarted)] == [0, pytest.approx(20)]


async def test_delay_of_loop(manager: Manager) -> None:
    """The delay of a loop precedes its first iteration."""
    began = anyio.current_time()
    starts: list[float] = []

    async def record_start() -> None:
        starts.append(anyio.current_time() - began)
        await anyio.sleep(1)

    manager.run_task(Task(record_start, kind=TaskKind.LOOP, delay=7, schedule=every(10)))
    await anyio.sleep(30)
    assert starts == [pytest.approx(seconds) for seconds in (7, 17, 27)]


async def test_delayed_tasks_queue_when_due() -> None:
    """Delayed tasks enter the queue when they are due."""
    order: list[str] = []

    async def record_start(name: str) -> None:
        order.append(name)
        await anyio.sleep(10)

    async with Manager(limit=1) as manager:
        manager.run(record_start, "first")
        manager.after(5, record_start, "due at 5")
        manager.after(3, record_start, "due at 3")
        await anyio.sleep(4)
        manager.run(record_start, "at 4")
        await manager.wait()
    assert order == ["first", "due at 3", "at 4", "due at 5"]


# Cancellation and expiry


async def test_cancel_delayed_task(manager: Manager, recorder: RecordingObserver) -> None:
    """A delayed task that is cancelled ends immediately and never starts."""
    handle = manager.after(3600, anyio.sleep_forever)
    assert handle.cancel("enough")
    assert handle.status is TaskStatus.CANCELLED
    assert handle.started_at is None
    assert handle.finished_at is not None
    assert not handle.cancel("again")
    with pytest.raises(TaskCancelledError, match="enough"):
        await handle
    await anyio.sleep(4000)
    assert recorder.names() == ["added", "cancelled"]
    assert recorder.of(TaskCancelled)[0].duration is None
    assert recorder.of(TaskCancelled)[0].attempt == 0


@pytest.mark.parametrize("kind", TaskKind)
@pytest.mark.parametrize("delay", [0, 10])
async def test_observer_cancels_added_task(
    recorder: RecordingObserver, kind: TaskKind, delay: float
) -> None:
    """An observer can cancel a task when it is added."""

    class CancellingObserver(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            assert manager.cancel(event.id, reason="not wanted")

    async with Manager(limit=1, observers=[recorder, CancellingObserver()]) as manager:
        handle = manager.run_task(Task(anyio.sleep_forever, kind=kind, delay=delay))
        assert handle.status is TaskStatus.CANCELLED
        await anyio.sleep(20)
        assert recorder.names() == ["added", "cancelled"]
        assert manager.count() == manager.health().hook_errors == 0


async def test_cancel_before_first_step(manager: Manager, recorder: RecordingObserver) -> None:
    """A task cancelled before its first step never starts."""
    handle = manager.run(anyio.sleep_forever)
    assert handle.cancel("at once")
    assert handle.status is TaskStatus.CANCELLED
    await yield_to_tasks()
    assert recorder.names() == ["added", "cancelled"]


async def test_cancel_loop_between_ticks(manager: Manager, recorder: RecordingObserver) -> None:
    """A loop cancelled between two ticks ends immediately."""
    loop = manager.every(100, checkpoint)
    await anyio.sleep(10)
    assert loop.cancel("enough")
    assert loop.status is TaskStatus.CANCELLED
    await anyio.sleep(1000)
    assert recorder.names() == ["added", "started", "succeeded", "cancelled"]
    assert recorder.of(TaskCancelled)[0].reason == "enough"


@pytest.mark.parametrize(
    "options",
    [
        {"kind": TaskKind.LOOP, "schedule": every(100), "delay": 0.0},
        {"kind": TaskKind.LOOP, "schedule": cron("0 0 1 1 *")},
    ],
    ids=["every", "cron"],
)
async def test_expiry_of_waiting_loop(
    manager: Manager, recorder: RecordingObserver, options: Any
) -> None:
    """A waiting loop expires at the end of its lifespan."""
    began = anyio.current_time()
    loop = manager.run_task(Task(checkpoint, lifespan=50, **options))
    with pytest.raises(TaskExpiredError, match="50 s"):
        await loop
    assert anyio.current_time() - began == pytest.approx(50)
    assert recorder.names()[-1] == "expired"
    assert recorder.of(TaskExpired)[0].duration is None
    assert recorder.of(TaskExpired)[0].lifespan == 50


async def test_expiry_in_queue(recorder: RecordingObserver) -> None:
    """A queued task expires at the end of its lifespan and never starts."""
    async with Manager(limit=1, observers=[recorder]) as manager:
        began = anyio.current_time()
        first = manager.run(anyio.sleep, 100)
        queued = manager.run_task(Task(checkpoint, lifespan=30, id="q"))
        delayed = manager.run_task(Task(checkpoint, lifespan=40, delay=20))
        long = manager.run_task(Task(checkpoint, lifespan=200))
        assert await queued.wait() is TaskStatus.EXPIRED
        assert anyio.current_time() - began == pytest.approx(30)
        assert await delayed.wait() is TaskStatus.EXPIRED
        assert anyio.current_time() - began == pytest.approx(40)
        assert await first.wait() is await long.wait() is TaskStatus.SUCCEEDED
    assert recorder.names("q") == ["added", "expired"]
    assert queued.started_at is None


async def test_expiry_of_running_task(manager: Manager, recorder: RecordingObserver) -> None:
    """A running task expires at the end of its lifespan, which includes the delay."""
    handle = manager.run_task(Task(anyio.sleep_forever, delay=10, lifespan=30))
    with pytest.raises(TaskExpiredError) as info:
        await handle
    assert (info.value.name, info.value.id, info.value.lifespan) == (handle.name, handle.id, 30)
    assert recorder.names() == ["added", "started", "expired"]
    assert recorder.of(TaskExpired)[0].duration == pytest.approx(20)


async def test_end_before_lifespan(manager: Manager) -> None:
    """A lifespan does not affect a task that ends earlier."""
    handle = manager.run_task(Task(anyio.sleep, args=(10,), lifespan=30))
    await handle
    await anyio.sleep(100)
    assert handle.status is TaskStatus.SUCCEEDED


async def test_expiry_during_iteration(manager: Manager) -> None:
    """A loop that expires during an iteration cancels it."""
    loop = manager.run_task(
        Task(anyio.sleep, args=(20,), kind=TaskKind.LOOP, schedule=every(25), lifespan=60)
    )
    assert await loop.wait() is TaskStatus.EXPIRED
    assert loop.iteration == 3


@pytest.mark.parametrize("clean_up", ["raises", "swallows"])
async def test_expired_loop_cleanup(manager: Manager, clean_up: str) -> None:
    """An expired loop ends even if its clean-up raises or swallows the cancellation."""

    async def work() -> None:
        # Without the shield, a second iteration would spin forever.
        with anyio.CancelScope(shield=loop.iteration > 1):
            try:
                await anyio.sleep(100)
            except anyio.get_cancelled_exc_class():
                if clean_up == "raises":
                    raise ValueError("clean-up") from None

    loop = manager.run_task(Task(work, kind=TaskKind.LOOP, lifespan=60))
    await anyio.sleep(61)
    assert loop.iteration == 1
    assert loop.status in (TaskStatus.EXPIRED, TaskStatus.FAILED)


async def test_cancel_before_expiry(manager: Manager) -> None:
    """A task cancelled before the end of its lifespan does not expire."""
    handle = manager.run_task(Task(anyio.sleep_forever, lifespan=10))
    await anyio.sleep(9)
    handle.cancel("just before")
    await anyio.sleep(10)
    with pytest.raises(TaskCancelledError, match="just before"):
        await handle


# Memory


def count_objects(kind: type) -> int:
    gc.collect()
    return sum(type(item) is kind for item in gc.get_objects())


async def test_memory_per_waiting_task(anyio_backend: object) -> None:
    """A waiting task uses about a kilobyte.

    A coroutine, a native task or a timer per task would double it.
    """
    async with Manager() as manager:
        manager.after(3600, checkpoint)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(2000):
                manager.after(3600, checkpoint)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (after - before) / 2000 < 1200
        await manager.close(timeout=0)


async def test_memory_of_cancelled_tasks(anyio_backend: object) -> None:
    """Tasks cancelled before they are due release their memory immediately."""
    async with Manager() as manager:
        task = Task(checkpoint, delay=3600)
        for _ in range(40_000):
            manager.run_task(task).cancel()
        handles = [manager.run_task(task) for _ in range(10_000)]
        for handle in handles:
            handle.cancel()
        remaining = manager.after(10, checkpoint)
        del handle, handles
        assert count_objects(TaskHandle) < 500
        await remaining


async def test_order_after_cancellations(manager: Manager) -> None:
    """Delayed tasks keep their order when most of them are cancelled."""
    seed = random.randrange(2**32)
    shuffled = random.Random(seed).sample(range(1, 2001), k=2000)
    order: list[int] = []

    async def record_start(number: int) -> None:
        order.append(number)

    handles = {number: manager.after(number, record_start, number) for number in shuffled}
    for number, handle in handles.items():
        if number % 10:
            handle.cancel()
    await manager.wait()
    assert order == list(range(10, 2001, 10)), f"seed {seed}"


async def test_finished_tasks_released() -> None:
    """Finished tasks are removed from the timer before the end of their lifespans.

    A queued task has an entry in the timer for its lifespan.
    """
    async with Manager(limit=1) as manager:
        handles = [manager.run_task(Task(checkpoint, lifespan=36000)) for _ in range(1000)]
        references = [weakref.ref(handle) for handle in handles]
        await manager.wait()
        del handles
        gc.collect()
        assert sum(reference() is not None for reference in references) < 200


async def test_timer_event_loop(manager: Manager) -> None:
    """Delayed tasks run in the event loop that entered the manager."""

    async def get_token() -> object:
        return current_token().native_token

    assert await manager.after(10, get_token) is current_token().native_token
