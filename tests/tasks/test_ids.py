"""Task ids, and lookup by id."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from background import (
    DuplicateTaskError,
    Manager,
    Observer,
    Task,
    TaskCancelledError,
    TaskEvent,
    TaskExpiredError,
    TaskHandle,
    TaskKind,
    TaskStatus,
    every,
    task,
)
from background.testing import RecordingObserver

pytestmark = pytest.mark.realtime  # nothing here waits for time to pass


async def fail() -> None:
    raise ValueError("wrong")


async def yield_to_tasks() -> None:
    for _ in range(10):
        await checkpoint()


KINDS: dict[str, dict[str, Any]] = {
    "waiting": {"delay": 3600},
    "running": {},
    "loop": {"kind": TaskKind.LOOP},
    "loop between ticks": {"kind": TaskKind.LOOP, "schedule": every(3600), "delay": 3600},
}


@pytest.mark.parametrize("second", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("first", KINDS.values(), ids=KINDS)
async def test_duplicate_id(
    manager: Manager, recorder: RecordingObserver, first: Any, second: Any
) -> None:
    """A second task with the id of an active task is rejected."""
    handle = manager.run_task(Task(anyio.sleep_forever, id="same", **first))
    await yield_to_tasks()
    with pytest.raises(DuplicateTaskError, match="'same'"):
        manager.run_task(Task(anyio.sleep_forever, id="same", **second))
    assert manager.tasks() == [handle]
    assert recorder.names().count("added") == 1


async def test_duplicate_id_of_queued_task() -> None:
    """A task queued above the limit occupies its id."""
    async with Manager(limit=1) as manager:
        blocker = manager.run(anyio.sleep_forever)
        manager.run_task(Task(checkpoint, id="same"))
        with pytest.raises(DuplicateTaskError):
            manager.run_task(Task(checkpoint, id="same"))
        blocker.cancel()


async def test_duplicate_id_at_capacity() -> None:
    """A duplicate id is reported as such even if the manager is at its capacity."""
    async with Manager(capacity=1) as manager:
        handle = manager.run_task(Task(anyio.sleep_forever, id="same"))
        with pytest.raises(DuplicateTaskError):
            manager.run_task(Task(checkpoint, id="same"))
        handle.cancel()


async def run_to_success(manager: Manager) -> None:
    await manager.run_task(Task(checkpoint, id="same"))


async def run_to_failure(manager: Manager) -> None:
    with pytest.raises(ValueError, match="wrong"):
        await manager.run_task(Task(fail, id="same"))


async def cancel_running(manager: Manager) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, id="same"))
    await yield_to_tasks()
    handle.cancel()
    with pytest.raises(TaskCancelledError):
        await handle


async def cancel_delayed(manager: Manager) -> None:
    manager.run_task(Task(anyio.sleep_forever, id="same", delay=3600)).cancel()


async def cancel_before_first_step(manager: Manager) -> None:
    manager.run_task(Task(anyio.sleep_forever, id="same")).cancel()


async def expire(manager: Manager) -> None:
    with pytest.raises(TaskExpiredError):
        await manager.run_task(Task(anyio.sleep_forever, id="same", lifespan=0.001))


async def stop_loop(manager: Manager) -> None:
    manager.run_task(Task(checkpoint, id="same", kind=TaskKind.LOOP))
    await yield_to_tasks()
    assert manager.cancel("same")
    await yield_to_tasks()


@pytest.mark.parametrize(
    "end",
    [
        run_to_success,
        run_to_failure,
        cancel_running,
        cancel_delayed,
        cancel_before_first_step,
        expire,
        stop_loop,
    ],
)
async def test_id_reuse(manager: Manager, end: Any) -> None:
    """An id can be used again after its task has ended, regardless of the outcome."""
    for _ in range(3):
        await end(manager)
        assert manager.get("same") is None
    assert await manager.run_task(Task(checkpoint, id="same")).wait() is TaskStatus.SUCCEEDED


async def test_id_reuse_in_observer() -> None:
    """An observer of a task's end can submit another task with the same id."""
    resubmitted: list[TaskHandle[None]] = []

    class ResubmittingObserver(Observer):
        def on_task_succeeded(self, event: TaskEvent) -> None:
            assert manager.get("same") is None
            if len(resubmitted) < 3:
                resubmitted.append(manager.run_task(Task(checkpoint, id="same")))

    async with Manager(observers=[ResubmittingObserver()]) as manager:
        manager.run_task(Task(checkpoint, id="same"))
        await manager.wait()
        assert manager.health().hook_errors == 0
    assert len(resubmitted) == 3


async def test_duplicate_id_in_observer() -> None:
    """A duplicate id submitted by an observer is rejected."""
    refused: list[DuplicateTaskError] = []

    class DuplicatingObserver(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            try:
                manager.run_task(Task(checkpoint, id=event.id))
            except DuplicateTaskError as error:
                refused.append(error)

    async with Manager(observers=[DuplicatingObserver()]) as manager:
        await manager.run_task(Task(checkpoint, id="same"))
    assert len(refused) == 1


async def test_same_id_in_two_managers() -> None:
    """Two managers can have tasks with the same id."""
    async with Manager() as first, Manager() as second:
        handles = [manager.run_task(Task(checkpoint, id="same")) for manager in (first, second)]
        assert handles == [first.get("same"), second.get("same")]


async def test_duplicate_id_from_decorator(manager: Manager) -> None:
    """An id set by the decorator permits only one active task of the function."""

    @task(id="only one")
    async def work() -> None:
        await anyio.sleep_forever()

    manager.run(work)
    with pytest.raises(DuplicateTaskError):
        manager.run(work)


async def test_generated_ids_unique() -> None:
    """Generated ids are unique across managers."""
    async with Manager() as first, Manager() as second:
        handles = [manager.run(checkpoint) for manager in (first, second) for _ in range(500)]
        assert len({handle.id for handle in handles}) == 1000


async def test_generated_id_collision(manager: Manager) -> None:
    """A generated id never equals an id that is in use."""
    prefix, number = manager.run(checkpoint).id.rsplit("-", 1)
    taken = {f"{prefix}-{int(number) + step}" for step in (1, 2)}
    for id in taken:
        manager.run_task(Task(anyio.sleep_forever, id=id))
    assert manager.run(checkpoint).id not in taken


# Lookup, cancellation and counts


async def test_get(manager: Manager) -> None:
    """`get()` returns an active task by its id, and None after its end."""
    handle = manager.run_task(Task(checkpoint, id="a"))
    assert manager.get("a") is handle
    assert manager.get("b") is None
    await handle
    assert manager.get("a") is None


async def test_cancel_by_id(manager: Manager) -> None:
    """`cancel()` cancels an active task by its id, with the reason."""
    handle = manager.run_task(Task(anyio.sleep_forever, id="a"))
    await yield_to_tasks()
    assert manager.cancel("a", reason="enough") is True
    with pytest.raises(TaskCancelledError, match="enough") as info:
        await handle
    assert (info.value.id, info.value.name, info.value.reason) == ("a", "sleep_forever", "enough")
    assert manager.cancel("a") is False
    assert manager.cancel("unknown") is False


async def test_cancel_during_cleanup(manager: Manager) -> None:
    """A second `cancel()` during clean-up returns True, but keeps the first reason."""
    resume = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await resume.wait()

    handle = manager.run_task(Task(work, id="a"))
    await yield_to_tasks()
    assert manager.cancel("a", reason="first")
    await yield_to_tasks()
    assert manager.cancel("a", reason="second") is True
    assert manager.get("a") is handle
    resume.set()
    with pytest.raises(TaskCancelledError, match="first"):
        await handle


async def test_cancel_without_reason(manager: Manager) -> None:
    """`TaskCancelledError` has no reason in its message if `cancel()` got none."""
    handle = manager.run(anyio.sleep_forever)
    await yield_to_tasks()
    handle.cancel()
    with pytest.raises(TaskCancelledError, match=r"was cancelled$"):
        await handle


async def test_task_cancels_itself(manager: Manager) -> None:
    """A task can cancel itself by its id."""

    async def work() -> None:
        assert manager.cancel("self", reason="by itself")
        await checkpoint()
        raise AssertionError("unreachable")

    with pytest.raises(TaskCancelledError, match="by itself"):
        await manager.run_task(Task(work, id="self"))


async def test_cancel_without_further_await(manager: Manager) -> None:
    """A cancelled task that does not await again succeeds."""

    async def work() -> str:
        assert manager.cancel("self")
        return "done"

    assert await manager.run_task(Task(work, id="self")) == "done"


async def test_tasks_by_kind(manager: Manager) -> None:
    """`tasks()` and `count()` filter by kind, and `tasks()` keeps the order of submission."""
    delayed = manager.after(3600, checkpoint)
    loop = manager.every(3600, checkpoint)
    running = manager.run(anyio.sleep_forever)
    await yield_to_tasks()
    assert manager.tasks() == [delayed, loop, running]
    assert manager.tasks(TaskKind.ONE_OFF) == [delayed, running]
    assert manager.tasks(TaskKind.LOOP) == [loop]
    assert [manager.count(kind) for kind in (None, *TaskKind)] == [3, 2, 1]
    delayed.cancel()
    assert manager.tasks() == [loop, running]
    assert [manager.count(kind) for kind in (None, *TaskKind)] == [2, 1, 1]


async def test_tasks_is_snapshot(manager: Manager) -> None:
    """The list returned by `tasks()` does not change when tasks end."""
    handle = manager.run(checkpoint)
    snapshot = manager.tasks()
    await handle
    assert snapshot == [handle]
    assert manager.tasks() == []


async def test_lookup_before_and_after_block() -> None:
    """Lookups find nothing before the manager is entered and after it is closed."""
    manager = Manager()
    for _ in range(2):
        assert manager.tasks() == []
        assert manager.count() == manager.count(TaskKind.LOOP) == 0
        assert manager.get("a") is None
        assert manager.cancel("a") is False
        if manager.state == "new":
            async with manager:
                manager.run(checkpoint)
