"""The order in which observers are told of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.outcomes import FATES, LOOP, TWICE, Fate, fine, meet, nap

from background import (
    Manager,
    Observer,
    Task,
    TaskAdded,
    TaskCancelled,
    TaskCancelledError,
    TaskEvent,
    TaskExpired,
    TaskHandle,
    TaskStatus,
    TaskSucceeded,
)
from background.testing import RecordingObserver


@pytest.mark.parametrize("fate", FATES.values(), ids=FATES)
async def test_order_of_events(fate: Fate, recorder: RecordingObserver) -> None:
    handle = await meet(fate, recorder)
    assert " ".join(recorder.names(handle.id)) == fate.order


@pytest.mark.parametrize("fate", FATES.values(), ids=FATES)
async def test_one_final_event(fate: Fate, recorder: RecordingObserver) -> None:
    """The last event of a task tells the same as its handle, and is its only final one."""
    handle = await meet(fate, recorder)
    ends = [
        each
        for each in recorder.of(TaskEvent, handle.id)
        if isinstance(each, (TaskCancelled, TaskExpired)) or getattr(each, "final", False)
    ]
    assert ends == [recorder.of(TaskEvent, handle.id)[-1]]
    assert recorder.names(handle.id)[-1] == handle.status


async def test_added_is_told_before_the_call_returns(
    manager: Manager, recorder: RecordingObserver
) -> None:
    handle = manager.run(fine)
    assert recorder.names() == ["added"]
    await handle
    assert recorder.names() == ["added", "started", "succeeded"]


@pytest.mark.realtime
async def test_order_of_events_of_sync_functions(
    manager: Manager, recorder: RecordingObserver
) -> None:
    handle = manager.run(lambda: "done")
    assert await handle == "done"
    assert recorder.names() == ["added", "started", "succeeded"]


class Reacting(Observer):
    """Does something to the first task that it is told of by one hook."""

    def __init__(self, hook: str, react: Callable[[Any], object]) -> None:
        self._reacted = False

        def on_event(event: TaskEvent) -> None:
            if not self._reacted:
                self._reacted = True
                react(event)

        setattr(self, hook, on_event)


REACTIONS = {
    "cancel": lambda manager, event: manager.cancel(event.id, reason="not now"),
    "shut down": lambda manager, event: manager.request_shutdown(),
    "shut down at once": lambda manager, event: [manager.request_shutdown() for _ in range(2)],
}


@pytest.mark.parametrize("reaction", REACTIONS)
@pytest.mark.parametrize("first", [True, False], ids=["reacting first", "recording first"])
@pytest.mark.parametrize(
    "make",
    [lambda: Task(nap), lambda: Task(nap, delay=5), lambda: Task(nap, kind=LOOP)],
    ids=["one-off", "delayed", "loop"],
)
async def test_reaction_to_added_keeps_the_order(
    reaction: str, first: bool, make: Callable[[], Task[Any]], recorder: RecordingObserver
) -> None:
    """An end that an observer causes while `added` is being told is told after it."""
    reacting = Reacting("on_task_added", lambda event: REACTIONS[reaction](manager, event))
    observers = [reacting, recorder] if first else [recorder, reacting]
    async with Manager(observers=observers) as manager:
        handle = manager.run_task(make())
        await handle.wait()
        names = recorder.names(handle.id)
        assert names[0] == "added"
        assert names.count("added") == 1
        assert names[-1] == handle.status


@pytest.mark.parametrize("reaction", REACTIONS)
async def test_reaction_to_the_end_of_an_iteration_keeps_the_order(
    reaction: str, recorder: RecordingObserver
) -> None:
    """A loop that an observer ends as its iteration succeeds ends after the success is told."""
    reacting = Reacting("on_task_succeeded", lambda event: REACTIONS[reaction](manager, event))
    async with Manager(observers=[reacting, recorder]) as manager:
        handle = manager.every(10, fine)
        await handle.wait()
    assert recorder.names(handle.id) == ["added", "started", "succeeded", "cancelled"]


@pytest.mark.parametrize("hook", ["on_task_started", "on_task_retrying"])
async def test_cancelling_hook_of_a_running_task(hook: str, recorder: RecordingObserver) -> None:
    reacting = Reacting(hook, lambda event: manager.cancel(event.id))
    async with Manager(observers=[reacting, recorder]) as manager:
        handle = manager.run_task(Task(nap, timeout=5, retry=TWICE))
        assert await handle.wait() is TaskStatus.CANCELLED
    names = [hook.removeprefix("on_task_"), "cancelled"]
    assert recorder.names(handle.id)[-2:] == names


async def test_one_off_cancelled_when_added_never_starts(recorder: RecordingObserver) -> None:
    started: list[str] = []

    async def work() -> None:
        started.append("work")

    reacting = Reacting("on_task_added", lambda event: manager.cancel(event.id, reason="no"))
    async with Manager(observers=[recorder, reacting]) as manager:
        handle = manager.run(work)
        assert handle.status is TaskStatus.CANCELLED
        assert manager.count() == 0
        with pytest.raises(TaskCancelledError, match="no"):
            await handle
        await manager.run(work)
    assert recorder.names(handle.id) == ["added", "cancelled"]
    assert started == ["work"]


@pytest.mark.parametrize(
    "hook", ["on_task_added", "on_task_started", "on_task_succeeded", "on_manager_closing"]
)
async def test_hook_that_submits_a_task(hook: str, recorder: RecordingObserver) -> None:
    """A task submitted by a hook runs, or is refused once the manager closes."""
    submitted: list[TaskHandle[str]] = []
    reacting = Reacting(hook, lambda event: submitted.append(manager.run(fine)))
    async with Manager(observers=[reacting, recorder]) as manager:
        first = manager.run(fine)
        await manager.wait()
    orders = [recorder.names(handle.id) for handle in (first, *submitted)]
    assert orders == [["added", "started", "succeeded"]] * (2 - (hook == "on_manager_closing"))
    assert manager.health().hook_errors == (hook == "on_manager_closing")


async def test_hook_sees_its_task_by_id(recorder: RecordingObserver) -> None:
    """The task is outstanding when `added` is told, and no longer when its end is."""
    seen: dict[str, bool] = {}

    class Looking(Observer):
        def on_task_added(self, event: TaskAdded) -> None:
            seen["added"] = manager.get(event.id) is not None

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            seen["succeeded"] = manager.get(event.id) is not None

    async with Manager(observers=[Looking()]) as manager:
        await manager.run(fine)
    assert seen == {"added": True, "succeeded": False}
