"""How many one-offs run, and how many are taken at all."""

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


async def settle() -> None:
    for _ in range(10):
        await checkpoint()


class Gauge:
    """A function that takes ten seconds, and how many are in it."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.inside = self.most = 0

    async def __call__(self, name: Any = None) -> None:
        self.order.append(name)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await anyio.sleep(10)
        finally:
            self.inside -= 1


# limit


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_no_more_than_the_limit_run_at_once(limit: int) -> None:
    gauge = Gauge()
    async with Manager(limit=limit) as manager:
        began = anyio.current_time()
        for number in range(21):
            manager.run(gauge, number)
        await settle()
        assert gauge.inside == limit
        statuses = [handle.status for handle in manager.tasks()]
        assert statuses == [TaskStatus.RUNNING] * limit + [TaskStatus.WAITING] * (21 - limit)
        await manager.wait()
        assert anyio.current_time() - began == pytest.approx(10 * -(-21 // limit))
    assert gauge.most == limit
    # Those that start in one step may swap places on trio.
    batches = [gauge.order[start : start + limit] for start in range(0, 21, limit)]
    assert [number for batch in batches for number in sorted(batch)] == list(range(21))


async def test_without_a_limit_all_run_at_once(manager: Manager) -> None:
    gauge = Gauge()
    for _ in range(1000):
        manager.run(gauge)
    await manager.wait()
    assert gauge.most == 1000


async def test_failures_and_cancellations_make_room_too() -> None:
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
    assert gauge.most == 1


async def test_queued_task_that_is_cancelled_loses_its_place() -> None:
    gauge = Gauge()
    async with Manager(limit=1) as manager:
        handles = [manager.run(gauge, number) for number in range(5)]
        await settle()
        assert handles[1].cancel()
        assert handles[3].cancel()
        await manager.wait()
    assert gauge.order == [0, 2, 4]


async def test_task_that_is_cancelled_before_its_first_step_makes_room_once() -> None:
    gauge = Gauge()
    async with Manager(limit=1) as manager:
        for _ in range(5):
            manager.run(gauge).cancel()
        for number in range(3):
            manager.run(gauge, number)
        await manager.wait()
    assert gauge.order == [0, 1, 2]
    assert gauge.most == 1


async def test_task_in_backoff_keeps_its_place() -> None:
    gauge = Gauge()

    async def fail() -> None:
        raise ValueError

    policy = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(10))
    async with Manager(limit=1) as manager:
        failing = manager.run_task(Task(fail, retry=policy))
        other = manager.run(gauge, "other")
        await anyio.sleep(19)
        assert failing.attempt == 2
        assert other.status is TaskStatus.WAITING
        await anyio.sleep(2)
        assert other.status is TaskStatus.RUNNING


async def test_loops_and_delayed_tasks_take_no_place() -> None:
    gauge = Gauge()
    async with Manager(limit=1) as manager:
        loop = manager.every(100, anyio.sleep_forever)
        manager.after(1000, checkpoint)
        await manager.run(gauge)
        assert loop.status is TaskStatus.RUNNING
        await manager.close(timeout=0)
    assert gauge.order == [None]


async def test_loops_are_not_limited() -> None:
    async with Manager(limit=1) as manager:
        loops = [manager.loop(anyio.sleep_forever) for _ in range(3)]
        await settle()
        assert {loop.status for loop in loops} == {TaskStatus.RUNNING}
        await manager.close(timeout=0)


# capacity


async def test_manager_takes_no_more_than_its_capacity(recorder: RecordingObserver) -> None:
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
        await settle()
        first.cancel()
        await first.wait()
        manager.run(checkpoint)
        with pytest.raises(ManagerFullError):
            manager.run(checkpoint)


async def test_loops_are_not_counted() -> None:
    async with Manager(capacity=1) as manager:
        loops = [manager.every(10, checkpoint) for _ in range(3)]
        handle = manager.run(checkpoint)
        manager.every(10, checkpoint)
        await handle
        manager.run(checkpoint)
        assert manager.count(TaskKind.LOOP) == len(loops) + 1


async def test_refused_task_can_be_submitted_again() -> None:
    task = Task(checkpoint, id="same")
    async with Manager(capacity=1) as manager:
        blocker = manager.run(anyio.sleep, 1)
        with pytest.raises(ManagerFullError):
            manager.run_task(task)
        await blocker
        await manager.run_task(task)


async def test_room_is_there_once_the_result_is() -> None:
    async with Manager(capacity=1) as manager:
        for _ in range(100):
            await manager.run(checkpoint)


# submit


async def submit_all(
    manager: Manager, tasks: list[Task[Any]], handles: list[TaskHandle[Any]]
) -> None:
    for task in tasks:
        handles.append(await manager.submit(task))


async def test_submit_waits_for_room() -> None:
    gauge = Gauge()
    async with Manager(capacity=2) as manager:
        began = anyio.current_time()
        for number in range(6):
            await manager.submit(Task(gauge, args=(number,)))
            assert manager.count() <= 2
        assert anyio.current_time() - began == pytest.approx(20)
        await manager.wait()
    assert gauge.order == list(range(6))
    assert gauge.most == 2


async def test_submit_does_not_wait_where_there_is_room(manager: Manager) -> None:
    began = anyio.current_time()
    handle = await manager.submit(Task(anyio.sleep, args=(10,), id="a"))
    assert anyio.current_time() == began
    assert manager.get("a") is handle


async def test_longest_waiter_is_first() -> None:
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(gauge, "first")
        for number in range(10):
            group.start_soon(manager.submit, Task(gauge, args=(number,)))
            await settle()
    assert gauge.order == ["first", *range(10)]


async def test_run_does_not_overtake_those_who_wait() -> None:
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        first = manager.run(gauge, "first")
        group.start_soon(manager.submit, Task(gauge, args=("waiting",)))
        await settle()
        await first.wait()
        with pytest.raises(ManagerFullError):
            manager.run(gauge, "overtaking")
    assert gauge.order == ["first", "waiting"]


async def test_submit_does_not_overtake_those_who_wait() -> None:
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        first = manager.run(gauge, "first")
        group.start_soon(manager.submit, Task(gauge, args=("waiting",)))
        await settle()
        await first.wait()
        await manager.submit(Task(gauge, args=("next",)))
    assert gauge.order == ["first", "waiting", "next"]


async def test_observer_does_not_overtake_those_who_wait() -> None:
    """Not even one that submits in the very moment in which a task ends."""
    gauge = Gauge()
    refused: list[ManagerFullError] = []

    class Follower(Observer):
        def on_task_succeeded(self, event: TaskEvent) -> None:
            if event.name == "first":
                try:
                    manager.run(gauge, "overtaking")
                except ManagerFullError as error:
                    refused.append(error)

    async with (
        Manager(capacity=1, observers=[Follower()]) as manager,
        anyio.create_task_group() as group,
    ):
        manager.run_task(Task(gauge, args=("first",), name="first"))
        group.start_soon(manager.submit, Task(gauge, args=("waiting",)))
        await settle()
    assert len(refused) == 1
    assert gauge.order == ["first", "waiting"]


async def test_observer_has_the_room_that_submit_leaves() -> None:
    """What `submit()` had reserved counts no more once the task is there."""
    refused: list[Exception] = []

    class Follower(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            if event.name == "first":
                try:
                    manager.run(checkpoint)
                except ManagerFullError as error:
                    refused.append(error)

    async with Manager(capacity=2, observers=[Follower()]) as manager:
        await manager.submit(Task(checkpoint, name="first"))
        assert manager.count() == 2
    assert not refused


async def test_submit_that_is_cancelled_while_it_waits_has_submitted_nothing(
    recorder: RecordingObserver,
) -> None:
    async with Manager(capacity=1, observers=[recorder]) as manager:
        manager.run(anyio.sleep, 10)
        with anyio.move_on_after(5) as scope:
            await manager.submit(Task(checkpoint, id="given up"))
        assert scope.cancelled_caught
        await manager.wait()
        assert recorder.names("given up") == []
        manager.run(checkpoint)


async def test_submit_that_is_cancelled_gives_its_turn_to_the_next() -> None:
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(gauge, "first")
        with anyio.move_on_after(5):
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(manager.submit, Task(gauge, args=("given up",)))
                await settle()
                group.start_soon(manager.submit, Task(gauge, args=("patient",)))
                await settle()
        await manager.wait()
    assert gauge.order == ["first", "patient"]


async def test_submit_that_is_cancelled_just_when_there_is_room_gives_it_back() -> None:
    gauge = Gauge()
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        blocker = manager.run(anyio.sleep_forever)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(manager.submit, Task(gauge, args=("given up",)))
                await settle()
                group.start_soon(manager.submit, Task(gauge, args=("next",)))
                await settle()
                blocker.cancel()
                while manager.get(blocker.id) is not None:
                    await checkpoint()
                scope.cancel()
        await settle()
        await manager.wait()
        assert manager.count() == 0
        manager.run(checkpoint)
    assert gauge.order in (["next"], ["given up", "next"])
    assert gauge.most == 1


@pytest.mark.parametrize("first", ["room", "cancellation"])
async def test_room_and_cancellation_in_one_step(first: str) -> None:
    """Either it has submitted a task or it has not; there is room afterwards in any case."""
    gauge = Gauge()
    submitted: list[TaskHandle[Any]] = []

    async def submit() -> None:
        submitted.append(await manager.submit(Task(gauge, args=("submitted",))))

    async with Manager(capacity=1) as manager:
        blocker = manager.after(1000, checkpoint)
        async with anyio.create_task_group() as impatient:
            impatient.start_soon(submit)
            await settle()
            if first == "room":
                blocker.cancel()
            impatient.cancel_scope.cancel()
            blocker.cancel()
        assert manager.tasks() == submitted
        await manager.wait()
        await manager.run(gauge, "next")
        assert gauge.order == [*("submitted" for _ in submitted), "next"]


async def test_refused_submit_gives_the_room_to_the_next() -> None:
    gauge = Gauge()
    refused: list[DuplicateTaskError] = []
    async with Manager(capacity=2) as manager, anyio.create_task_group() as group:

        async def submit_twin() -> None:
            try:
                await manager.submit(Task(gauge, id="twin"))
            except DuplicateTaskError as error:
                refused.append(error)

        manager.run_task(Task(anyio.sleep, args=(100,), id="twin"))
        manager.run(gauge, "first")
        group.start_soon(submit_twin)
        await settle()
        group.start_soon(manager.submit, Task(gauge, args=("next",)))
        await anyio.sleep(15)
        assert len(refused) == 1
        assert gauge.order == ["first", "next"]


async def test_submit_of_a_duplicate_takes_no_room() -> None:
    async with Manager(capacity=2) as manager:
        manager.run_task(Task(anyio.sleep, args=(10,), id="same"))
        for _ in range(3):
            with pytest.raises(DuplicateTaskError):
                await manager.submit(Task(checkpoint, id="same"))
        manager.run(checkpoint)


async def test_closing_sends_those_who_wait_away() -> None:
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
        await settle()
        began = anyio.current_time()
        await manager.close()
        assert anyio.current_time() - began == pytest.approx(10)
    assert outcomes == ["ManagerClosedError"] * 5


async def test_those_who_wait_hear_of_the_closing_at_once() -> None:
    async with Manager(capacity=1) as manager, anyio.create_task_group() as group:
        manager.run(anyio.sleep, 10)
        began = anyio.current_time()
        group.start_soon(manager.close)
        with pytest.raises(ManagerClosedError):
            await manager.submit(Task(checkpoint))
        assert anyio.current_time() == began


async def test_submit_after_closing_began() -> None:
    async with Manager() as manager:
        await manager.close()
        with pytest.raises(ManagerClosedError):
            await manager.submit(Task(checkpoint))
    with pytest.raises(ManagerClosedError):
        await manager.submit(Task(checkpoint))


async def test_submit_before_the_manager_was_entered(anyio_backend: object) -> None:
    with pytest.raises(ManagerNotRunningError):
        await Manager().submit(Task(checkpoint))


async def test_submit_of_a_loop_needs_no_room() -> None:
    async with Manager(capacity=1) as manager:
        manager.run(anyio.sleep, 10)
        began = anyio.current_time()
        loop = await manager.submit(Task(checkpoint, kind=TaskKind.LOOP, schedule=every(10)))
        assert anyio.current_time() == began
        await settle()
        await manager.stop_loops()
        assert loop.iteration > 0
        with pytest.raises(LoopsStoppedError):
            await manager.submit(Task(checkpoint, kind=TaskKind.LOOP))


async def test_loops_that_stop_while_submit_has_its_checkpoint() -> None:
    """On trio the checkpoint may be over before; in neither case does a loop go on."""
    async with Manager() as manager, anyio.create_task_group() as group:
        group.start_soon(manager.stop_loops)
        with contextlib.suppress(LoopsStoppedError):
            await manager.submit(Task(anyio.sleep, args=(1,), kind=TaskKind.LOOP))
        await anyio.sleep(10)
        assert manager.count() == 0
        with pytest.raises(LoopsStoppedError):
            await manager.submit(Task(checkpoint, kind=TaskKind.LOOP))


async def test_submit_is_a_checkpoint(manager: Manager) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.submit(Task(checkpoint))
    assert scope.cancelled_caught
    assert manager.count() == 0


async def test_submit_takes_a_task(manager: Manager) -> None:
    with pytest.raises(InvalidTaskError, match=r"^task must be a Task"):
        await manager.submit(checkpoint)  # type: ignore[arg-type]


@pytest.mark.realtime
@pytest.mark.parametrize("method", ["submit", "wait", "stop_loops", "close", "shutdown_requested"])
async def test_what_is_awaited_needs_the_managers_event_loop(manager: Manager, method: str) -> None:
    arguments = (Task(checkpoint),) if method == "submit" else ()

    async def elsewhere() -> None:
        with pytest.raises(ManagerMisuseError, match=rf"{method}\(\)"):
            await getattr(manager, method)(*arguments)

    await anyio.to_thread.run_sync(anyio.run, elsewhere)
    assert manager.state == "running"
    assert manager.count() == 0


async def test_stress_of_limit_and_capacity_together() -> None:
    """Whatever comes, waits or is cancelled, neither bound is broken and no room is lost."""
    gauge = Gauge()
    done = 0

    async def producer(number: int) -> None:
        nonlocal done
        for turn in range(20):
            with anyio.move_on_after(5 + (number * turn) % 40):
                handle = await manager.submit(Task(gauge, lifespan=15 + turn))
                assert manager.count() <= 5
                if (number + turn) % 7 == 0:
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
    assert gauge.most == 3
