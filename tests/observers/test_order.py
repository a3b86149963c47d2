"""The order of a task's events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.outcomes import LOOP, SCENARIOS, TWICE, Scenario, fine, nap, play

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


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_order_by_outcome(scenario: Scenario, recorder: RecordingObserver) -> None:
    """The events of a task have the order that belongs to its outcome."""
    handle = await play(scenario, recorder)
    assert " ".join(recorder.names(handle.id)) == scenario.order


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_one_final_event(scenario: Scenario, recorder: RecordingObserver) -> None:
    """The last event of a task is its only final one, and agrees with the handle's status."""
    handle = await play(scenario, recorder)
    ends = [
        event
        for event in recorder.of(TaskEvent, handle.id)
        if isinstance(event, (TaskCancelled, TaskExpired)) or getattr(event, "final", False)
    ]
    assert ends == [recorder.of(TaskEvent, handle.id)[-1]]
    assert recorder.names(handle.id)[-1] == handle.status


async def test_added_before_return(manager: Manager, recorder: RecordingObserver) -> None:
    """`on_task_added` is called before `run()` returns."""
    handle = manager.run(fine)
    assert recorder.names() == ["added"]
    await handle
    assert recorder.names() == ["added", "started", "succeeded"]


@pytest.mark.realtime
async def test_order_of_sync_function(manager: Manager, recorder: RecordingObserver) -> None:
    """The events of a sync function have the same order."""
    handle = manager.run(lambda: "done")
    assert await handle == "done"
    assert recorder.names() == ["added", "started", "succeeded"]


class Reacting(Observer):
    """Calls a function with the first event that one hook receives."""

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
async def test_end_caused_by_on_task_added(
    reaction: str, first: bool, make: Callable[[], Task[Any]], recorder: RecordingObserver
) -> None:
    """An end that a hook causes in `on_task_added` is reported after `TaskAdded`."""
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
async def test_end_caused_by_on_task_succeeded(reaction: str, recorder: RecordingObserver) -> None:
    """An end that a hook causes in `on_task_succeeded` is reported after `TaskSucceeded`."""
    reacting = Reacting("on_task_succeeded", lambda event: REACTIONS[reaction](manager, event))
    async with Manager(observers=[reacting, recorder]) as manager:
        handle = manager.every(10, fine)
        await handle.wait()
    assert recorder.names(handle.id) == ["added", "started", "succeeded", "cancelled"]


@pytest.mark.parametrize("hook", ["on_task_started", "on_task_retrying"])
async def test_hook_cancels_running_task(hook: str, recorder: RecordingObserver) -> None:
    """A task that a hook cancels is reported as cancelled after the hook's event."""
    reacting = Reacting(hook, lambda event: manager.cancel(event.id))
    async with Manager(observers=[reacting, recorder]) as manager:
        handle = manager.run_task(Task(nap, timeout=5, retry=TWICE))
        assert await handle.wait() is TaskStatus.CANCELLED
    names = [hook.removeprefix("on_task_"), "cancelled"]
    assert recorder.names(handle.id)[-2:] == names


async def test_hook_cancels_added_task(recorder: RecordingObserver) -> None:
    """A one-off that a hook cancels in `on_task_added` never starts."""
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
async def test_hook_submits_task(hook: str, recorder: RecordingObserver) -> None:
    """A task that a hook submits runs, or is refused if the manager closes."""
    submitted: list[TaskHandle[str]] = []
    reacting = Reacting(hook, lambda event: submitted.append(manager.run(fine)))
    async with Manager(observers=[reacting, recorder]) as manager:
        first = manager.run(fine)
        await manager.wait()
    orders = [recorder.names(handle.id) for handle in (first, *submitted)]
    assert orders == [["added", "started", "succeeded"]] * (2 - (hook == "on_manager_closing"))
    assert manager.health().hook_errors == (hook == "on_manager_closing")


async def test_lookup_in_hook(recorder: RecordingObserver) -> None:
    """A task is outstanding in `on_task_added`, and no longer in `on_task_succeeded`."""
    seen: dict[str, bool] = {}

    class Lookup(Observer):
        def on_task_added(self, event: TaskAdded) -> None:
            seen["added"] = manager.get(event.id) is not None

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            seen["succeeded"] = manager.get(event.id) is not None

    async with Manager(observers=[Lookup()]) as manager:
        await manager.run(fine)
    assert seen == {"added": True, "succeeded": False}
