"""Tasks that submit tasks while their manager closes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from support.closing import cleans_up, closed, counts
from support.leaving import report_to
from support.time import SOON, Clock

from background import (
    Manager,
    ManagerClosedError,
    ManagerFullError,
    Observer,
    Task,
    TaskHandle,
    TaskKind,
    TaskStatus,
)
from background.testing import RecordingObserver

Submit = Callable[[Manager], TaskHandle[Any]]


class Crawler:
    """Visits the pages of a tree, each of which has two links, in a task of its own."""

    def __init__(self, manager: Manager, depth: int = 4) -> None:
        self.manager = manager
        self.depth = depth
        self.visited: list[str] = []

    async def visit(self, page: str = "") -> None:
        await anyio.sleep(1)
        self.visited.append(page)
        if len(page) < self.depth:
            for link in "ab":
                self.manager.run(self.visit, page + link)


async def refused(manager: Manager, submit: Submit | None = None) -> None:
    with pytest.raises(ManagerClosedError):
        (submit or (lambda manager: manager.run(checkpoint)))(manager)


async def sleep_and_submit(manager: Manager, submit: Submit) -> TaskHandle[Any]:
    await anyio.sleep(1)
    return submit(manager)


# Accepted


async def test_tree(clock: Clock, recorder: RecordingObserver) -> None:
    """Leaving the block waits for a tree of tasks, as a task group does."""
    async with Manager(observers=[recorder]) as manager:
        crawler = Crawler(manager)
        manager.run(crawler.visit)
    assert len(crawler.visited) == 31
    assert clock.now == 5
    assert counts(report_to(recorder)) == {"succeeded": 31}


async def test_tree_until_deadline(clock: Clock) -> None:
    """Tasks of a tree are refused from the deadline on, and no child is lost."""
    refusals: list[str] = []

    async def grow(manager: Manager) -> None:
        try:
            await anyio.sleep(1)
            manager.run(grow, manager)
        finally:
            try:
                manager.run(grow, manager)
            except ManagerClosedError as error:
                refusals.append(str(error))

    async with Manager() as manager:
        manager.run(grow, manager)
        report = await closed(manager, timeout=3.5)
    assert counts(report) == {"succeeded": 7, "cancelled": 8}
    assert refusals == ["manager 'background' is closing and accepts no more tasks"] * 8


async def test_submission_in_child_of_task(clock: Clock) -> None:
    """A task group in a task may submit for it."""

    async def work(manager: Manager) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(sleep_and_submit, manager, submit)

    def submit(manager: Manager) -> TaskHandle[Any]:
        handles.append(manager.run(anyio.sleep, 5))
        return handles[-1]

    handles: list[TaskHandle[Any]] = []
    async with Manager() as manager:
        manager.run(work, manager)
    assert [handle.status for handle in handles] == [TaskStatus.SUCCEEDED]
    assert clock.now == 6


async def test_submission_in_loop(clock: Clock) -> None:
    """The last iteration of a loop may submit one-offs."""
    handles: list[TaskHandle[Any]] = []

    async def poll() -> None:
        await anyio.sleep(2)
        handles.append(manager.run(anyio.sleep, 5))

    async with Manager() as manager:
        loop = manager.loop(poll)
        await anyio.sleep(1)
    assert clock.now == 7
    assert (loop.iteration, handles[0].status) == (1, TaskStatus.SUCCEEDED)


async def test_submission_of_waiting_task(clock: Clock) -> None:
    """A task that waits for the other tasks may submit more of them."""

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(manager.wait)
            await anyio.sleep(1)
            manager.run(anyio.sleep, 3)

    async with Manager() as manager:
        manager.run(work)
        manager.run(anyio.sleep, 2)
    assert clock.now == 4


@pytest.mark.parametrize("submit", [Manager.run_task, Manager.submit])
async def test_delayed_submission(clock: Clock, recorder: RecordingObserver, submit: Any) -> None:
    """A delayed one-off is cancelled at once, as those that were submitted before."""

    async def work() -> None:
        await anyio.sleep(1)
        handle = submit(manager, Task(checkpoint, delay=60))
        if not isinstance(handle, TaskHandle):
            handle = await handle
        assert await handle.wait() is TaskStatus.CANCELLED

    async with Manager(observers=[recorder]) as manager:
        first = manager.run(work)
    assert first.status is TaskStatus.SUCCEEDED
    assert counts(report_to(recorder)) == {"succeeded": 1, "not_started": 1}
    assert clock.now == 1


async def test_queued_submission(clock: Clock) -> None:
    """A submission above the limit waits for its turn, as before the closing."""
    async with Manager(limit=1) as manager:
        crawler = Crawler(manager, depth=2)
        manager.run(crawler.visit)
    assert crawler.visited == ["", "a", "b", "aa", "ab", "ba", "bb"]
    assert clock.now == 7


@pytest.mark.realtime
async def test_submission_from_thread(recorder: RecordingObserver) -> None:
    """The thread of a sync task may submit for it, and other threads may not."""
    entered, closing = threading.Event(), threading.Event()
    outcomes: list[object] = []

    class Closing(Observer):
        def on_manager_closing(self, event: Any) -> None:
            closing.set()

    def work() -> None:
        entered.set()
        closing.wait(SOON)
        outcomes.append(manager.run(int))
        other = threading.Thread(target=submit)
        other.start()
        other.join(SOON)
        outcomes.append(anyio.from_thread.run(manager.submit, Task(int)))

    def submit() -> None:
        try:
            manager.run(int)
        except ManagerClosedError as error:
            outcomes.append(error)

    async with Manager(observers=[Closing()]) as manager:
        manager.run(work)
        await anyio.to_thread.run_sync(entered.wait, SOON)
    first, error, second = outcomes
    assert isinstance(error, ManagerClosedError)
    for handle in (first, second):
        assert isinstance(handle, TaskHandle)
        assert handle.status is TaskStatus.SUCCEEDED


# Refused


LOOPS: dict[str, Submit] = {
    "loop": lambda manager: manager.loop(checkpoint),
    "every": lambda manager: manager.every(1, checkpoint),
    "run_task": lambda manager: manager.run_task(Task(checkpoint, kind=TaskKind.LOOP)),
}


@pytest.mark.parametrize("submit", LOOPS.values(), ids=LOOPS)
async def test_loops_refused(clock: Clock, submit: Submit) -> None:
    """A task can't submit loops while its manager closes."""

    async def work() -> None:
        await anyio.sleep(1)
        await refused(manager, submit)

    async with Manager() as manager:
        handle = manager.run(work)
    assert handle.status is TaskStatus.SUCCEEDED


async def test_closing_task_refused(clock: Clock) -> None:
    """A task that called `close()`, and for which the closing does not wait, can't submit."""

    async def closer() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(closed, manager)
            await anyio.sleep(1)
            await refused(manager)

    async with Manager() as manager:
        handle = manager.run(closer)
        manager.run(anyio.sleep, 5)
    assert handle.status is TaskStatus.SUCCEEDED


async def test_task_of_other_manager_refused(clock: Clock) -> None:
    """A task of another manager can't submit."""
    async with Manager() as other, Manager() as manager:
        handle = other.run(sleep_and_submit, manager, lambda manager: manager.run(checkpoint))
        manager.run(anyio.sleep, 2)
    assert isinstance(handle.error, ManagerClosedError)


async def test_ended_task_refused(clock: Clock) -> None:
    """Code that outlives the task in which it began can't submit."""

    class Submitting(Observer):
        def on_task_succeeded(self, event: Any) -> None:
            with pytest.raises(ManagerClosedError) as caught:
                manager.run(checkpoint)
            errors.append(caught.value)

    errors: list[Any] = []
    async with Manager(observers=[Submitting()]) as manager:
        manager.run(anyio.sleep, 1)
    assert len(errors) == 1


async def test_stuck_task_refused(clock: Clock) -> None:
    """A task that outlives the closing can't submit."""

    async def work() -> None:
        try:
            await cleans_up(10)
        finally:
            await refused(manager)
            done.append(1)

    done: list[int] = []
    async with Manager(cancel_timeout=5) as manager:
        handle = manager.run(work)
        await checkpoint()
        await manager.close(timeout=0)
    await handle.wait()
    assert done == [1]


# submit(), which waits for room


async def test_submit_in_tree(clock: Clock) -> None:
    """`submit()` in a task waits for room while the manager closes; elsewhere it is refused."""
    handles: list[TaskHandle[Any]] = []

    async def feed() -> None:
        for _ in range(4):
            handles.append(await manager.submit(Task(anyio.sleep, args=(5,))))

    async def submit() -> None:
        with pytest.raises(ManagerClosedError):
            await manager.submit(Task(checkpoint))
        assert clock.now == 1

    async with anyio.create_task_group() as group, Manager(capacity=2) as manager:
        manager.run(feed)
        await anyio.sleep(1)
        group.start_soon(submit)
        await checkpoint()
    assert [handle.status for handle in handles] == [TaskStatus.SUCCEEDED] * 4
    assert clock.now == 20


async def test_submit_at_deadline(clock: Clock) -> None:
    """`submit()` in a task is refused at the deadline."""
    errors: list[BaseException] = []

    async def feed() -> None:
        with anyio.CancelScope(shield=True):
            try:
                await manager.submit(Task(checkpoint))
            except ManagerClosedError as error:
                errors.append(error)

    async with Manager(capacity=1) as manager:
        manager.run(feed)
        await anyio.wait_all_tasks_blocked()
        await manager.close(timeout=10)
    assert len(errors) == 1
    assert clock.now == pytest.approx(10, abs=1)


async def test_submit_of_closing_task(clock: Clock) -> None:
    """`submit()` is refused in a task that closes, and waits on once its `close()` is cancelled."""
    handles: list[TaskHandle[Any]] = []

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(submit)
            await checkpoint()
            with anyio.move_on_after(1):
                await manager.close()

    async def submit() -> None:
        with pytest.raises(ManagerClosedError):
            await manager.submit(Task(checkpoint))
        await anyio.sleep(2)
        handles.append(await manager.submit(Task(checkpoint)))

    async with Manager(capacity=2) as manager:
        manager.run(work)
        manager.run(anyio.sleep, 10)
    assert [handle.status for handle in handles] == [TaskStatus.SUCCEEDED]
    assert clock.now == 10


async def test_full_while_closing(clock: Clock) -> None:
    """`run()` in a task is subject to the capacity while the manager closes."""

    async def work() -> None:
        await anyio.sleep(1)
        with pytest.raises(ManagerFullError):
            manager.run(checkpoint)

    async with Manager(capacity=2) as manager:
        handle = manager.run(work)
        manager.run(anyio.sleep, 2)
    assert handle.status is TaskStatus.SUCCEEDED
