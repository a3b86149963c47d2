"""Rule 9: ids, and finding tasks by them."""

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


async def settle() -> None:
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
async def test_second_task_with_the_same_id_is_refused(
    manager: Manager, recorder: RecordingObserver, first: Any, second: Any
) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, id="same", **first))
    await settle()
    with pytest.raises(DuplicateTaskError, match="'same'"):
        manager.run_task(Task(anyio.sleep_forever, id="same", **second))
    assert manager.tasks() == [handle]
    assert recorder.names().count("added") == 1


async def test_queued_task_keeps_its_id() -> None:
    async with Manager(limit=1) as manager:
        blocker = manager.run(anyio.sleep_forever)
        manager.run_task(Task(checkpoint, id="same"))
        with pytest.raises(DuplicateTaskError):
            manager.run_task(Task(checkpoint, id="same"))
        blocker.cancel()


async def test_duplicate_that_would_not_fit_either_is_a_duplicate() -> None:
    async with Manager(capacity=1) as manager:
        handle = manager.run_task(Task(anyio.sleep_forever, id="same"))
        with pytest.raises(DuplicateTaskError):
            manager.run_task(Task(checkpoint, id="same"))
        handle.cancel()


async def succeed(manager: Manager) -> None:
    await manager.run_task(Task(checkpoint, id="same"))


async def fail_it(manager: Manager) -> None:
    with pytest.raises(ValueError, match="wrong"):
        await manager.run_task(Task(fail, id="same"))


async def cancel_it(manager: Manager) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, id="same"))
    await settle()
    handle.cancel()
    with pytest.raises(TaskCancelledError):
        await handle


async def cancel_it_before_it_starts(manager: Manager) -> None:
    manager.run_task(Task(anyio.sleep_forever, id="same", delay=3600)).cancel()


async def cancel_it_before_its_first_step(manager: Manager) -> None:
    manager.run_task(Task(anyio.sleep_forever, id="same")).cancel()


async def expire_it(manager: Manager) -> None:
    with pytest.raises(TaskExpiredError):
        await manager.run_task(Task(anyio.sleep_forever, id="same", lifespan=0.001))


async def stop_it(manager: Manager) -> None:
    manager.run_task(Task(checkpoint, id="same", kind=TaskKind.LOOP))
    await settle()
    assert manager.cancel("same")
    await settle()


@pytest.mark.parametrize(
    "end",
    [
        succeed,
        fail_it,
        cancel_it,
        cancel_it_before_it_starts,
        cancel_it_before_its_first_step,
        expire_it,
        stop_it,
    ],
)
async def test_id_is_free_again_after_the_end(manager: Manager, end: Any) -> None:
    for _ in range(3):
        await end(manager)
        assert manager.get("same") is None
    assert await manager.run_task(Task(checkpoint, id="same")).wait() is TaskStatus.SUCCEEDED


async def test_id_is_free_for_the_observer_that_is_told_of_the_end() -> None:
    """So that an observer can start the next one in its place."""
    rounds: list[TaskHandle[None]] = []

    class Again(Observer):
        def on_task_succeeded(self, event: TaskEvent) -> None:
            assert manager.get("same") is None
            if len(rounds) < 3:
                rounds.append(manager.run_task(Task(checkpoint, id="same")))

    async with Manager(observers=[Again()]) as manager:
        manager.run_task(Task(checkpoint, id="same"))
        await manager.wait()
        assert manager.health().hook_errors == 0
    assert len(rounds) == 3


async def test_observer_that_submits_the_same_id_while_it_is_taken_is_refused() -> None:
    refused: list[DuplicateTaskError] = []

    class Twice(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            try:
                manager.run_task(Task(checkpoint, id=event.id))
            except DuplicateTaskError as error:
                refused.append(error)

    async with Manager(observers=[Twice()]) as manager:
        await manager.run_task(Task(checkpoint, id="same"))
    assert len(refused) == 1


async def test_managers_do_not_share_ids() -> None:
    async with Manager() as first, Manager() as second:
        handles = [each.run_task(Task(checkpoint, id="same")) for each in (first, second)]
        assert handles == [first.get("same"), second.get("same")]


async def test_id_in_a_functions_options(manager: Manager) -> None:
    @task(id="only one")
    async def work() -> None:
        await anyio.sleep_forever()

    manager.run(work)
    with pytest.raises(DuplicateTaskError):
        manager.run(work)


async def test_ids_that_the_manager_makes_are_unique() -> None:
    async with Manager() as first, Manager() as second:
        handles = [manager.run(checkpoint) for manager in (first, second) for _ in range(500)]
        assert len({handle.id for handle in handles}) == 1000


async def test_manager_makes_no_id_that_somebody_has_taken(manager: Manager) -> None:
    prefix, number = manager.run(checkpoint).id.rsplit("-", 1)
    taken = {f"{prefix}-{int(number) + step}" for step in (1, 2)}
    for id in taken:
        manager.run_task(Task(anyio.sleep_forever, id=id))
    assert manager.run(checkpoint).id not in taken


# get, cancel, tasks, count


async def test_get_finds_what_is_outstanding(manager: Manager) -> None:
    handle = manager.run_task(Task(checkpoint, id="a"))
    assert manager.get("a") is handle
    assert manager.get("b") is None
    await handle
    assert manager.get("a") is None


async def test_cancel_by_id(manager: Manager) -> None:
    handle = manager.run_task(Task(anyio.sleep_forever, id="a"))
    await settle()
    assert manager.cancel("a", reason="enough") is True
    with pytest.raises(TaskCancelledError, match="enough") as info:
        await handle
    assert (info.value.id, info.value.name, info.value.reason) == ("a", "sleep_forever", "enough")
    assert manager.cancel("a") is False
    assert manager.cancel("never there") is False


async def test_cancel_again_while_the_task_cleans_up(manager: Manager) -> None:
    go_on = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await go_on.wait()

    handle = manager.run_task(Task(work, id="a"))
    await settle()
    assert manager.cancel("a", reason="first")
    await settle()
    assert manager.cancel("a", reason="second") is True
    assert manager.get("a") is handle
    go_on.set()
    with pytest.raises(TaskCancelledError, match="first"):
        await handle


async def test_cancel_without_a_reason(manager: Manager) -> None:
    handle = manager.run(anyio.sleep_forever)
    await settle()
    handle.cancel()
    with pytest.raises(TaskCancelledError, match=r"was cancelled$"):
        await handle


async def test_task_cancels_itself(manager: Manager) -> None:
    async def work() -> None:
        assert manager.cancel("me", reason="by itself")
        await checkpoint()
        raise AssertionError("unreachable")

    with pytest.raises(TaskCancelledError, match="by itself"):
        await manager.run_task(Task(work, id="me"))


async def test_cancel_comes_too_late_for_a_task_that_awaits_no_more(manager: Manager) -> None:
    async def work() -> str:
        assert manager.cancel("me")
        return "done"

    assert await manager.run_task(Task(work, id="me")) == "done"


async def test_tasks_and_counts_by_kind(manager: Manager) -> None:
    delayed = manager.after(3600, checkpoint)
    loop = manager.every(3600, checkpoint)
    running = manager.run(anyio.sleep_forever)
    await settle()
    assert manager.tasks() == [delayed, loop, running]
    assert manager.tasks(TaskKind.ONE_OFF) == [delayed, running]
    assert manager.tasks(TaskKind.LOOP) == [loop]
    assert [manager.count(kind) for kind in (None, *TaskKind)] == [3, 2, 1]
    delayed.cancel()
    assert manager.tasks() == [loop, running]
    assert [manager.count(kind) for kind in (None, *TaskKind)] == [2, 1, 1]


async def test_tasks_is_a_snapshot(manager: Manager) -> None:
    handle = manager.run(checkpoint)
    snapshot = manager.tasks()
    await handle
    assert snapshot == [handle]
    assert manager.tasks() == []


async def test_nothing_is_there_before_and_after() -> None:
    manager = Manager()
    for _ in range(2):
        assert manager.tasks() == []
        assert manager.count() == manager.count(TaskKind.LOOP) == 0
        assert manager.get("a") is None
        assert manager.cancel("a") is False
        if manager.state == "new":
            async with manager:
                manager.run(checkpoint)
