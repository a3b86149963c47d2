"""Limits of a manager: the limit of running tasks and the capacity for active tasks."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from background import (
    DuplicateTaskError,
    InvalidTaskError,
    LoopsStoppedError,
    Manager,
    ManagerClosedError,
    ManagerFullError,
    ManagerMisuseError,
    ManagerNotRunningError,
    Observer,
    Task,
    TaskEvent,
    TaskHandle,
    TaskKind,
    TaskStatus,
    every,
)
from background.testing import RecordingObserver


async def yield_to_tasks() -> None:
    for _ in range(10):
        await checkpoint()


class Gauge:
    """A task function that takes ten seconds and counts its concurrent calls."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.running = self.peak = 0

    async def __call__(self, name: Any = None) -> None:
        self.order.append(name)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await anyio.sleep(10)
        finally:
            self.running -= 1


# Limit


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_limit(limit: int) -> None:
    """At most `limit` tasks run at once; queued tasks start in the order of submission."""
    gauge = Gauge()
    async with Manager(limit=limit) as manager:
        began = anyio.current_time()
        for number in range(21):
            manager.run(gauge, number)
        await yield_to_tasks()
        assert gauge.running == limit
        statuses = [handle.status for handle in manager.tasks()]
        assert statuses == [TaskStatus.RUNNING] * limit + [TaskStatus.WAITING] * (21 - limit)
        await manager.wait()
        assert anyio.current_time() - began == pytest.approx(10 * -(-21 // limit))
    assert gauge.peak == limit
    # Tasks that start in the same step may run in any order on trio.
    batches = [gauge.order[start : start + limit] for start in range(0, 21, limit)]
    assert [number for batch in batches for number in sorted(batch)] == list(range(21))


async def test_no_limit(manager: Manager) -> None:
    """Without a limit all tasks run at once."""
    gauge = Gauge()
    for _ in range(1000):
        manager.run(gauge)
    await manager.wait()
    assert gauge.peak == 1000


async def test_slot_freed_by_any_outcome() -> None:
    """A task that fails, expires or is cancelled frees its slot."""
    gauge = Gauge()

    async def fail() -> None:
        raise ValueError

    async with Manager(limit=1) as manager:
        manager.run(fail)
        cancelled = manager.run(gauge, "cancelled")
        expired = manager.run_task(Task(gauge, args=("expired",), lifespan=8))
        late = manager.run_task(Task(gauge, args=("late",), lifespan=9))
        manager.run(gauge, "last")
        await anyio.sleep(5)
        cancelled.cancel()
        await manager.wait()
        assert expired.status is late.status is TaskStatus.EXPIRED
    assert gauge.order == ["cancelled", "expired", "late", "last"]
    assert gauge.peak == 1


async def test_cancel_queued_task() -> None:
    """A queued task that is cancelled leaves the queue."""
    gauge = Gauge()
    async with Manager(limit=1) as manager:
        handles = [manager.run(gauge, number) for number in range(5)]
        await yield_to_tasks()
        assert handles[1].cancel()
        assert handles[3].cancel()
        await manager.wait()
    assert gauge.order == [0, 2, 4]


async def test_cancel_before_first_step() -> None:
    """A task cancelled before its first step frees its slot exactly once."""
    gauge = Gauge()
    async with Manager(limit=1) as manager:
        for _ in range(5):
            manager.run(gauge).cancel()
        for number in range(3):
            manager.run(gauge, number)
        await manager.wait()
    assert gauge.order == [0, 1, 2]
    assert gauge.peak == 1


async def test_backoff_keeps_slot() -> None:
    """A task in backoff keeps its slot."""
    gauge = Gauge()

    async def fail() -> None:
        raise ValueError

    policy = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(10))
    async with Manager(limit=1) as manager:
        failing = manager.run_task(Task(fail, retry=policy))
        queued = manager.run(gauge, "queued")
        await anyio.sleep(19)
        assert failing.attempt == 2
        assert queued.status is TaskStatus.WAITING
        await anyio.sleep(2)
        assert queued.status is TaskStatus.RUNNING


async def test_loops_and_delayed_tasks_use_no_slot() -> None:
    """Loops and delayed tasks occupy no slot."""
    gauge = Gauge()
    async with Manager(limit=1) as manager:
        loop = manager.every(100, anyio.sleep_forever)
        manager.after(1000, checkpoint)
        await manager.run(gauge)
        assert loop.status is TaskStatus.RUNNING
        await manager.close(timeout=0)
    assert gauge.order == [None]


async def test_loops_ignore_limit() -> None:
    """The limit does not apply to loops."""
    async with Manager(limit=1) as manager:
        loops = [manager.loop(anyio.sleep_forever) for _ in range(3)]
        await yield_to_tasks()
        assert {loop.status for loop in loops} == {TaskStatus.RUNNING}
        await manager.close(timeout=0)


# Capacity


async def test_capacity(recorder: RecordingObserver) -> None:
    """A manager at its capacity rejects tasks until one of its tasks ends."""
    async with Manager(capacity=3, observers=[recorder]) as manager:
        first = manager.run(anyio.sleep, 10)
        manager.run(anyio.sleep, 10)
        manager.after(10, checkpoint)
        with pytest.raises(ManagerFullError, match=r"3.*submit"):
            manager.run(checkpoint)
        with pytest.raises(ManagerFullError):
            manager.after(10, checkpoint)
        assert manager.count() == 3
        assert len(recorder.events) == 3
        await yield_to_tasks()
        first.cancel()
        await first.wait()
        manager.run(checkpoint)
        with pytest.raises(ManagerFullError):
            manager.run(checkpoint)


async def test_loops_ignore_capacity() -> None:
    """The capacity does not apply to loops."""
    async with Manager(capacity=1) as manager:
        loops = [manager.every(10, checkpoint) for _ in range(3)]
        handle = manager.run(checkpoint)
        manager.every(10, checkpoint)
        await handle
        manager.run(checkpoint)
        assert manager.count(TaskKind.LOOP) == len(loops) + 1


async def test_resubmit_after_rejection() -> None:
    """A task rejected for lack of capacity can be submitted again."""
    task = Task(checkpoint, id="same")
    async with Manager(capacity=1) as manager:
        blocker = manager.run(anyio.sleep, 1)
        with pytest.raises(ManagerFullError):
            manager.run_task(task)
        await blocker
        await manager.run_task(task)


async def test_capacity_freed_before_result() -> None:
    """The capacity is available again when the result of a task is."""
    async with Manager(capacity=1) as manager:
        for _ in range(100):
            await manager.run(checkpoint)


# submit()


async def test_submit_waits_for_capacity() -> None:
    """`submit()` waits until the manager has capacity."""
    gauge = Gauge()
    async with Manager(capacity=2) as manager:
        began = anyio.current_time()
        for number in range(6):
            await manager.submit(Task(gauge, args=(number,)))
            assert manager.count() <= 2
        assert anyio.current_time() - began == pytest.approx(20)
        await manager.wait()
    assert gauge.order == list(range(6))
    assert gauge.peak == 2


async def test_submit_with_capacity(manager: Manager) -> None:
    """`submit()` does not wait if the manager has capacity."""
    began = anyio.current_time()
    handle = await manager.submit(Task(anyio.sleep, args=(10,), id="a"))
    assert anyio.current_time() == began
    assert manager.get("a") is handle


async def test_submit_is_fair() -> None:
    """Waiting `submit()` calls are served in the order of their calls."""
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(gauge, "first")
        for number in range(10):
            group.start_soon(manager.submit, Task(gauge, args=(number,)))
            await yield_to_tasks()
    assert gauge.order == ["first", *range(10)]


async def test_run_does_not_overtake_submit() -> None:
    """`run()` does not take capacity that is freed for a waiting `submit()`."""
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        first = manager.run(gauge, "first")
        group.start_soon(manager.submit, Task(gauge, args=("waiting",)))
        await yield_to_tasks()
        await first.wait()
        with pytest.raises(ManagerFullError):
            manager.run(gauge, "overtaking")
    assert gauge.order == ["first", "waiting"]


async def test_submit_does_not_overtake_submit() -> None:
    """A later `submit()` does not overtake a waiting one."""
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        first = manager.run(gauge, "first")
        group.start_soon(manager.submit, Task(gauge, args=("waiting",)))
        await yield_to_tasks()
        await first.wait()
        await manager.submit(Task(gauge, args=("next",)))
    assert gauge.order == ["first", "waiting", "next"]


async def test_observer_does_not_overtake_submit() -> None:
    """An observer that submits when a task ends does not overtake a waiting `submit()`."""
    gauge = Gauge()
    refused: list[ManagerFullError] = []

    class SubmittingObserver(Observer):
        def on_task_succeeded(self, event: TaskEvent) -> None:
            if event.name == "first":
                try:
                    manager.run(gauge, "overtaking")
                except ManagerFullError as error:
                    refused.append(error)

    async with (
        Manager(capacity=1, observers=[SubmittingObserver()]) as manager,
        anyio.create_task_group() as group,
    ):
        manager.run_task(Task(gauge, args=("first",), name="first"))
        group.start_soon(manager.submit, Task(gauge, args=("waiting",)))
        await yield_to_tasks()
    assert len(refused) == 1
    assert gauge.order == ["first", "waiting"]


async def test_observer_after_submit() -> None:
    """The reservation of `submit()` ends when its task is added, before observers are called."""
    refused: list[Exception] = []

    class SubmittingObserver(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            if event.name == "first":
                try:
                    manager.run(checkpoint)
                except ManagerFullError as error:
                    refused.append(error)

    async with Manager(capacity=2, observers=[SubmittingObserver()]) as manager:
        await manager.submit(Task(checkpoint, name="first"))
        assert manager.count() == 2
    assert not refused


async def test_cancel_waiting_submit(
    recorder: RecordingObserver,
) -> None:
    """A `submit()` cancelled while it waits submits nothing."""
    async with Manager(capacity=1, observers=[recorder]) as manager:
        manager.run(anyio.sleep, 10)
        with anyio.move_on_after(5) as scope:
            await manager.submit(Task(checkpoint, id="cancelled"))
        assert scope.cancelled_caught
        await manager.wait()
        assert recorder.names("cancelled") == []
        manager.run(checkpoint)


async def test_cancelled_submit_passes_turn() -> None:
    """A cancelled `submit()` leaves its turn to the next waiter."""
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(gauge, "first")
        with anyio.move_on_after(5):
            async with anyio.create_task_group() as waiters:
                waiters.start_soon(manager.submit, Task(gauge, args=("cancelled",)))
                await yield_to_tasks()
                group.start_soon(manager.submit, Task(gauge, args=("next",)))
                await yield_to_tasks()
        await manager.wait()
    assert gauge.order == ["first", "next"]


async def test_cancelled_submit_returns_capacity() -> None:
    """A `submit()` cancelled just when it gets capacity returns it."""
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        blocker = manager.run(anyio.sleep_forever)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as waiters:
                waiters.start_soon(manager.submit, Task(gauge, args=("cancelled",)))
                await yield_to_tasks()
                group.start_soon(manager.submit, Task(gauge, args=("next",)))
                await yield_to_tasks()
                blocker.cancel()
                while manager.get(blocker.id) is not None:
                    await checkpoint()
                scope.cancel()
        await yield_to_tasks()
        await manager.wait()
        assert manager.count() == 0
        manager.run(checkpoint)
    assert gauge.order in (["next"], ["cancelled", "next"])
    assert gauge.peak == 1


@pytest.mark.parametrize("first", ["room", "cancellation"])
async def test_capacity_and_cancellation_together(first: str) -> None:
    """A `submit()` that gets capacity and is cancelled in one step loses no capacity.

    Whether it has submitted a task is left open.
    """
    gauge = Gauge()
    submitted: list[TaskHandle[Any]] = []

    async def submit() -> None:
        submitted.append(await manager.submit(Task(gauge, args=("submitted",))))

    async with Manager(capacity=1) as manager:
        blocker = manager.after(1000, checkpoint)
        async with anyio.create_task_group() as waiters:
            waiters.start_soon(submit)
            await yield_to_tasks()
            if first == "room":
                blocker.cancel()
            waiters.cancel_scope.cancel()
            blocker.cancel()
        assert manager.tasks() == submitted
        await manager.wait()
        await manager.run(gauge, "next")
        assert gauge.order == [*("submitted" for _ in submitted), "next"]


async def test_rejected_submit_passes_turn() -> None:
    """A `submit()` rejected for its id leaves its turn to the next waiter."""
    gauge = Gauge()
    refused: list[DuplicateTaskError] = []
    async with Manager(capacity=2) as manager, anyio.create_task_group() as group:

        async def submit_duplicate() -> None:
            try:
                await manager.submit(Task(gauge, id="same"))
            except DuplicateTaskError as error:
                refused.append(error)

        manager.run_task(Task(anyio.sleep, args=(100,), id="same"))
        manager.run(gauge, "first")
        group.start_soon(submit_duplicate)
        await yield_to_tasks()
        group.start_soon(manager.submit, Task(gauge, args=("next",)))
        await anyio.sleep(15)
        assert len(refused) == 1
        assert gauge.order == ["first", "next"]


async def test_duplicate_submit_uses_no_capacity() -> None:
    """A `submit()` with a duplicate id uses no capacity."""
    async with Manager(capacity=2) as manager:
        manager.run_task(Task(anyio.sleep, args=(10,), id="same"))
        for _ in range(3):
            with pytest.raises(DuplicateTaskError):
                await manager.submit(Task(checkpoint, id="same"))
        manager.run(checkpoint)


async def test_close_rejects_waiting_submits() -> None:
    """Waiting `submit()` calls are rejected when the manager closes."""
    outcomes: list[str] = []

    async def try_to_submit() -> None:
        try:
            await manager.submit(Task(checkpoint))
        except ManagerClosedError as error:
            outcomes.append(type(error).__name__)

    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(anyio.sleep, 10)
        for _ in range(5):
            group.start_soon(try_to_submit)
        await yield_to_tasks()
        began = anyio.current_time()
        await manager.close()
        assert anyio.current_time() - began == pytest.approx(10)
    assert outcomes == ["ManagerClosedError"] * 5


async def test_close_wakes_waiting_submit() -> None:
    """A waiting `submit()` is rejected as soon as closing begins."""
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(anyio.sleep, 10)
        began = anyio.current_time()
        group.start_soon(manager.close)
        with pytest.raises(ManagerClosedError):
            await manager.submit(Task(checkpoint))
        assert anyio.current_time() == began


async def test_submit_after_close() -> None:
    """`submit()` is rejected after the manager began to close."""
    async with Manager() as manager:
        await manager.close()
        with pytest.raises(ManagerClosedError):
            await manager.submit(Task(checkpoint))
    with pytest.raises(ManagerClosedError):
        await manager.submit(Task(checkpoint))


async def test_submit_before_enter(anyio_backend: object) -> None:
    """`submit()` is rejected before the manager is entered."""
    with pytest.raises(ManagerNotRunningError):
        await Manager().submit(Task(checkpoint))


async def test_submit_loop_at_capacity() -> None:
    """`submit()` of a loop does not wait for capacity."""
    async with Manager(capacity=1) as manager:
        manager.run(anyio.sleep, 10)
        began = anyio.current_time()
        loop = await manager.submit(Task(checkpoint, kind=TaskKind.LOOP, schedule=every(10)))
        assert anyio.current_time() == began
        await yield_to_tasks()
        await manager.stop_loops()
        assert loop.iteration > 0
        with pytest.raises(LoopsStoppedError):
            await manager.submit(Task(checkpoint, kind=TaskKind.LOOP))


async def test_stop_loops_during_submit() -> None:
    """No loop runs if loops stop during the checkpoint of `submit()`.

    On trio the checkpoint may end first; the loop is then stopped.
    """
    async with Manager() as manager, anyio.create_task_group() as group:
        group.start_soon(manager.stop_loops)
        with contextlib.suppress(LoopsStoppedError):
            await manager.submit(Task(anyio.sleep, args=(1,), kind=TaskKind.LOOP))
        await anyio.sleep(10)
        assert manager.count() == 0
        with pytest.raises(LoopsStoppedError):
            await manager.submit(Task(checkpoint, kind=TaskKind.LOOP))


async def test_submit_is_checkpoint(manager: Manager) -> None:
    """`submit()` is a cancellation point, even if the manager has capacity."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.submit(Task(checkpoint))
    assert scope.cancelled_caught
    assert manager.count() == 0


async def test_submit_non_task(manager: Manager) -> None:
    """`submit()` rejects an argument that is not a `Task`."""
    with pytest.raises(InvalidTaskError, match=r"^task must be a Task"):
        await manager.submit(checkpoint)  # type: ignore[arg-type]


@pytest.mark.realtime
@pytest.mark.parametrize("method", ["submit", "wait", "stop_loops", "close", "shutdown_requested"])
async def test_async_method_in_another_event_loop(manager: Manager, method: str) -> None:
    """Async methods of a manager raise an error in another event loop."""
    arguments = (Task(checkpoint),) if method == "submit" else ()

    async def call_method() -> None:
        with pytest.raises(ManagerMisuseError, match=rf"{method}\(\)"):
            await getattr(manager, method)(*arguments)

    await anyio.to_thread.run_sync(anyio.run, call_method)
    assert manager.state == "running"
    assert manager.count() == 0


async def test_limit_and_capacity_stress() -> None:
    """Limit and capacity hold under concurrent submissions and cancellations.

    No capacity is lost in the end.
    """
    gauge = Gauge()
    done = 0

    async def producer(number: int) -> None:
        nonlocal done
        for attempt in range(20):
            with anyio.move_on_after(5 + (number * attempt) % 40):
                handle = await manager.submit(Task(gauge, lifespan=15 + attempt))
                assert manager.count() <= 5
                if (number + attempt) % 7 == 0:
                    handle.cancel()
                else:
                    await handle.wait()
            done += 1

    async with Manager(limit=3, capacity=5) as manager:
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(producer, number)
        await manager.wait()
        for _ in range(5):
            manager.run(checkpoint)
        with pytest.raises(ManagerFullError):
            manager.run(checkpoint)
    assert done == 400
    assert gauge.peak == 3
