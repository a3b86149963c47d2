"""Rule 4: what waits for its time is an entry in one heap, and nothing else."""

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


def native_tasks(backend_name: str) -> int:
    if backend_name == "asyncio":
        return len(asyncio.all_tasks())
    import trio

    def count(task: Any) -> int:
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return 1 + sum(count(child) for child in children)

    return count(trio.lowlevel.current_root_task())


def native_timers(backend_name: str) -> int:
    """Return how many timers the event loop itself has."""
    if backend_name == "asyncio":
        loop: Any = asyncio.get_running_loop()
        return sum(not timer.cancelled() for timer in loop._scheduled)
    import trio

    finite = trio.lowlevel.current_statistics().seconds_to_next_deadline < math.inf
    return int(finite)


async def settle() -> None:
    for _ in range(10):
        await checkpoint()


def make_delayed(manager: Manager) -> None:
    manager.after(3600, anyio.sleep_forever)


def make_scheduled(manager: Manager) -> None:
    manager.every(3600, checkpoint)


def make_cron(manager: Manager) -> None:
    manager.cron("0 3 * * *", checkpoint)


def make_delayed_loop(manager: Manager) -> None:
    manager.run_task(Task(checkpoint, kind=TaskKind.LOOP, delay=3600))


def make_mortal(manager: Manager) -> None:
    manager.run_task(Task(checkpoint, delay=3600, lifespan=7200))


def make_backed_off(manager: Manager) -> None:
    async def fail() -> None:
        raise ValueError

    manager.loop(fail)


@pytest.mark.parametrize(
    "make",
    [make_delayed, make_scheduled, make_cron, make_delayed_loop, make_mortal, make_backed_off],
)
async def test_what_waits_is_no_task_and_no_timer(
    anyio_backend_name: str, make: Callable[[Manager], None]
) -> None:
    def backoff(state: Any) -> float:
        return 3600

    async with Manager(loop_backoff=backoff, observers=[Quiet()]) as manager:  # type: ignore[arg-type]
        make(manager)
        await settle()
        tasks, timers = native_tasks(anyio_backend_name), native_timers(anyio_backend_name)
        for _ in range(200):
            make(manager)
        await settle()
        assert native_tasks(anyio_backend_name) == tasks
        assert native_timers(anyio_backend_name) == timers == 1
        assert manager.count() == 201
        assert {handle.status for handle in manager.tasks()} == {TaskStatus.WAITING}
        await manager.close(timeout=0)


class Quiet(Observer):
    def on_task_failed(self, event: TaskEvent) -> None:
        pass


async def test_queued_tasks_are_no_tasks_either(anyio_backend_name: str) -> None:
    async with Manager(limit=1) as manager:
        manager.run(anyio.sleep_forever)
        await settle()
        before = native_tasks(anyio_backend_name)
        for _ in range(200):
            manager.run(checkpoint)
        await settle()
        assert native_tasks(anyio_backend_name) == before
        await manager.close(timeout=0)


async def test_no_time_passes_for_the_processor_while_tasks_wait(anyio_backend_name: str) -> None:
    """The event loop goes to sleep until the next one is due: one wake-up for each time."""
    async with Manager() as manager:
        for second in (1000, 2000):
            for _ in range(100):
                manager.after(second, checkpoint)
        began = anyio.current_time()
        await manager.wait()
        assert anyio.current_time() - began == pytest.approx(2000)


# When it starts


async def test_tasks_start_when_they_are_due(manager: Manager) -> None:
    seed = random.randrange(2**32)
    delays = random.Random(seed).sample(range(1, 1000), k=200)
    began = anyio.current_time()
    started: list[tuple[float, int, int]] = []

    async def note(delay: int, number: int) -> None:
        started.append((anyio.current_time() - began, delay, number))

    for number, delay in enumerate(delays):
        manager.after(delay, note, delay, number)
    await manager.wait()
    assert [moment for moment, _, _ in started] == [
        pytest.approx(delay) for _, delay, _ in started
    ], f"seed {seed}"
    in_order = sorted(range(200), key=lambda number: delays[number])
    assert [number for _, _, number in started] == in_order, f"seed {seed}"


async def test_an_earlier_task_wakes_the_timer(manager: Manager) -> None:
    began = anyio.current_time()
    later = manager.after(100, checkpoint)
    await settle()
    sooner = manager.after(10, checkpoint)
    await sooner
    assert anyio.current_time() - began == pytest.approx(10)
    await later
    assert anyio.current_time() - began == pytest.approx(100)


async def test_many_entries_due_at_once_leave_turns_to_others() -> None:
    """The timer lets the event loop go on after a few hundred."""
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


async def test_no_delay_is_no_detour(manager: Manager, recorder: RecordingObserver) -> None:
    await manager.after(0, checkpoint)
    assert recorder.of(TaskStarted)[0].queued_for == 0


async def test_added_is_told_with_the_delay_and_started_with_the_time_queued(
    recorder: RecordingObserver,
) -> None:
    async with Manager(limit=1, observers=[recorder]) as manager:
        manager.run(anyio.sleep, 30)
        await manager.after(10, checkpoint)
    assert [getattr(event, "delay", None) for event in recorder.events[:2]] == [0, 10]
    assert [event.queued_for for event in recorder.of(TaskStarted)] == [0, pytest.approx(20)]


async def test_delay_of_a_loop_comes_before_its_first_iteration(manager: Manager) -> None:
    began = anyio.current_time()
    starts: list[float] = []

    async def note() -> None:
        starts.append(anyio.current_time() - began)
        await anyio.sleep(1)

    manager.run_task(Task(note, kind=TaskKind.LOOP, delay=7, schedule=every(10)))
    await anyio.sleep(30)
    assert starts == [pytest.approx(each) for each in (7, 17, 27)]


async def test_delayed_tasks_wait_for_their_turn_once_they_are_due() -> None:
    order: list[str] = []

    async def note(name: str) -> None:
        order.append(name)
        await anyio.sleep(10)

    async with Manager(limit=1) as manager:
        manager.run(note, "first")
        manager.after(5, note, "due at 5")
        manager.after(3, note, "due at 3")
        await anyio.sleep(4)
        manager.run(note, "at 4")
        await manager.wait()
    assert order == ["first", "due at 3", "at 4", "due at 5"]


# How it ends before it has started


async def test_cancelling_what_waits_ends_it_at_once(
    manager: Manager, recorder: RecordingObserver
) -> None:
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
async def test_observer_that_cancels_what_it_is_told_of(
    recorder: RecordingObserver, kind: TaskKind, delay: float
) -> None:
    class Censor(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            assert manager.cancel(event.id, reason="not wanted")

    async with Manager(limit=1, observers=[recorder, Censor()]) as manager:
        handle = manager.run_task(Task(anyio.sleep_forever, kind=kind, delay=delay))
        assert handle.status is TaskStatus.CANCELLED
        await anyio.sleep(20)
        assert recorder.names() == ["added", "cancelled"]
        assert manager.count() == manager.health().hook_errors == 0


async def test_cancelling_what_is_about_to_take_its_first_step(
    manager: Manager, recorder: RecordingObserver
) -> None:
    handle = manager.run(anyio.sleep_forever)
    assert handle.cancel("at once")
    assert handle.status is TaskStatus.CANCELLED
    await settle()
    assert recorder.names() == ["added", "cancelled"]


async def test_loop_that_is_cancelled_between_two_ticks(
    manager: Manager, recorder: RecordingObserver
) -> None:
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
async def test_lifespan_that_ends_while_a_loop_waits(
    manager: Manager, recorder: RecordingObserver, options: Any
) -> None:
    began = anyio.current_time()
    loop = manager.run_task(Task(checkpoint, lifespan=50, **options))
    with pytest.raises(TaskExpiredError, match="50 s"):
        await loop
    assert anyio.current_time() - began == pytest.approx(50)
    assert recorder.names()[-1] == "expired"
    assert recorder.of(TaskExpired)[0].duration is None
    assert recorder.of(TaskExpired)[0].lifespan == 50


async def test_lifespan_that_ends_in_the_queue(recorder: RecordingObserver) -> None:
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


async def test_lifespan_that_ends_while_a_task_runs(
    manager: Manager, recorder: RecordingObserver
) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, delay=10, lifespan=30))
    with pytest.raises(TaskExpiredError) as info:
        await handle
    assert (info.value.name, info.value.id, info.value.lifespan) == (handle.name, handle.id, 30)
    assert recorder.names() == ["added", "started", "expired"]
    assert recorder.of(TaskExpired)[0].duration == pytest.approx(20)


async def test_lifespan_that_does_not_end_harms_nobody(manager: Manager) -> None:
    handle = manager.run_task(Task(anyio.sleep, args=(10,), lifespan=30))
    await handle
    await anyio.sleep(100)
    assert handle.status is TaskStatus.SUCCEEDED


async def test_lifespan_of_a_loop_ends_its_iteration(manager: Manager) -> None:
    loop = manager.run_task(
        Task(anyio.sleep, args=(20,), kind=TaskKind.LOOP, schedule=every(25), lifespan=60)
    )
    assert await loop.wait() is TaskStatus.EXPIRED
    assert loop.iteration == 3


@pytest.mark.parametrize("clean_up", ["raises", "swallows"])
async def test_lifespan_of_a_loop_ends_it_whatever_its_clean_up_does(
    manager: Manager, clean_up: str
) -> None:
    async def work() -> None:
        with anyio.CancelScope(shield=loop.iteration > 1):  # not to hang where there is a second
            try:
                await anyio.sleep(100)
            except anyio.get_cancelled_exc_class():
                if clean_up == "raises":
                    raise ValueError("clean-up") from None

    loop = manager.run_task(Task(work, kind=TaskKind.LOOP, lifespan=60))
    await anyio.sleep(61)
    assert loop.iteration == 1
    assert loop.status in (TaskStatus.EXPIRED, TaskStatus.FAILED)


async def test_cancellation_and_lifespan_at_the_same_time(manager: Manager) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, lifespan=10))
    await anyio.sleep(9)
    handle.cancel("just before")
    await anyio.sleep(10)
    with pytest.raises(TaskCancelledError, match="just before"):
        await handle


# What it costs


def live(kind: type) -> int:
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


async def test_waiting_task_takes_about_a_kilobyte(anyio_backend: object) -> None:
    """A coroutine, a native task or a timer for each would double it."""
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


async def test_cancelled_tasks_leave_nothing_behind(anyio_backend: object) -> None:
    """Fifty thousand that come and go, an hour before they are due, take no room."""
    async with Manager() as manager:
        task = Task(checkpoint, delay=3600)
        for _ in range(40_000):
            manager.run_task(task).cancel()
        handles = [manager.run_task(task) for _ in range(10_000)]
        for handle in handles:
            handle.cancel()
        survivor = manager.after(10, checkpoint)
        del handle, handles
        assert live(TaskHandle) < 500
        await survivor


async def test_cancelling_most_keeps_the_rest_in_order(manager: Manager) -> None:
    seed = random.randrange(2**32)
    shuffled = random.Random(seed).sample(range(1, 2001), k=2000)
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    handles = {number: manager.after(number, note, number) for number in shuffled}
    for number, handle in handles.items():
        if number % 10:
            handle.cancel()
    await manager.wait()
    assert order == list(range(10, 2001, 10)), f"seed {seed}"


async def test_finished_tasks_are_forgotten_before_their_lifespan_ends() -> None:
    """One that had to queue was in the heap for its lifespan; it is not kept there once it ran."""
    async with Manager(limit=1) as manager:
        handles = [manager.run_task(Task(checkpoint, lifespan=36000)) for _ in range(1000)]
        forgotten = [weakref.ref(handle) for handle in handles]
        await manager.wait()
        del handles
        gc.collect()
        assert sum(reference() is not None for reference in forgotten) < 200


async def test_timer_belongs_to_the_event_loop_that_entered_the_manager(manager: Manager) -> None:
    async def where() -> object:
        return current_token().native_token

    assert await manager.after(10, where) is current_token().native_token
