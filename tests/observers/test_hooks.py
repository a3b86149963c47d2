"""Which hooks are called, and what unused ones cost."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.outcomes import EVENTS, HOOKS, broken, everything_happens, fine

from background import JobRef, Manager, Observer, TaskAdded, TaskFailed, TaskStarted, TaskSucceeded
from background._execution import emit
from background.testing import RecordingObserver


def keeping(kind: str, hook: str, kept: list[Any]) -> type[Observer]:
    """Make an observer class with one hook of a kind that keeps what it gets."""

    def plain(self: Observer, event: Any) -> None:
        kept.append(event)

    async def coroutine(self: Observer, event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        kept.append(event)

    def returning(self: Observer, event: Any) -> Awaitable[None]:
        return coroutine(self, event)

    class Awaiting:
        def __init__(self, event: Any) -> None:
            self.event = event

        def __await__(self) -> Any:
            yield from anyio.lowlevel.checkpoint().__await__()
            kept.append(self.event)

    def awaitable(self: Observer, event: Any) -> Awaitable[None]:
        return Awaiting(event)

    kinds = {"def": plain, "async def": coroutine, "def of coroutine": returning}
    return type("Keeping", (Observer,), {hook: {**kinds, "def of awaitable": awaitable}[kind]})


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", ["def", "async def", "def of coroutine", "def of awaitable"])
async def test_kinds_of_hooks(kind: str, hook: str, recorder: RecordingObserver) -> None:
    """Each hook may be of each kind, and gets the same events in the same order."""
    kept: list[Any] = []
    manager = await everything_happens(recorder, keeping(kind, hook, kept)())
    pairs = zip(recorder.names(), recorder.events, strict=True)
    assert kept == [event for name, event in pairs if hook.endswith(f"_{name}")]
    assert kept
    assert manager.health().hook_errors == 0


async def test_hooks_set_on_an_instance(recorder: RecordingObserver) -> None:
    """A hook may be an attribute of the object instead of a method."""
    kept: list[Any] = []
    observer = Observer()
    observer.on_task_succeeded = kept.append  # type: ignore[method-assign]
    async with Manager(observers=[observer, recorder]) as manager:
        await manager.run(fine)
    assert kept == recorder.of(TaskSucceeded)


async def test_hook_returning_something_else_is_let_be() -> None:
    class Chatty(Observer):
        def on_task_succeeded(self, event: TaskSucceeded) -> Any:
            return "thanks"

    async with Manager(observers=[Chatty()]) as manager:
        await manager.run(fine)
    assert manager.health().hook_errors == 0


async def test_observer_given_twice_is_told_once(recorder: RecordingObserver) -> None:
    async with Manager(observers=[recorder, recorder]) as manager:
        await manager.run(fine)
    assert recorder.names() == ["added", "started", "succeeded", "closing", "closed"]


async def test_observers_are_told_in_their_order() -> None:
    order: list[int] = []

    class Numbered(Observer):
        def __init__(self, number: int) -> None:
            self.number = number

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            order.append(self.number)

    async with Manager(observers=[Numbered(1), Numbered(2), Numbered(3)]) as manager:
        await manager.run(fine)
    assert order == [1, 2, 3]


async def test_plain_hooks_see_the_context_of_the_submitter_or_of_the_task() -> None:
    """`added` is told where the task is submitted, and the rest inside the task."""
    tasks: dict[str, Any] = {}

    class Where(Observer):
        def on_task_added(self, event: TaskAdded) -> None:
            tasks["added"] = anyio.get_current_task()

        def on_task_started(self, event: TaskStarted) -> None:
            tasks["started"] = anyio.get_current_task()

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            tasks["succeeded"] = anyio.get_current_task()

    async def work() -> anyio.TaskInfo:
        return anyio.get_current_task()

    async with Manager(observers=[Where()]) as manager:
        own = await manager.run(work)
    assert tasks == {"added": anyio.get_current_task(), "started": own, "succeeded": own}


def counting_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the names of the classes of all events that are made from now on kept."""
    made: list[str] = []

    def counting_init(original: Any) -> Any:
        def counted(self: Any, *args: Any, **kwargs: Any) -> None:
            made.append(type(self).__name__)
            original(self, *args, **kwargs)

        return counted

    def counting_new(kind: type) -> Any:
        made.append(kind.__name__)
        return object.__new__(kind)

    for kind in set(EVENTS) - {JobRef}:  # which events have a part in
        monkeypatch.setattr(kind, "__init__", counting_init(kind.__init__))
    monkeypatch.setattr(emit, "_new", counting_new)
    return made


async def test_no_event_is_made_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counting_events(monkeypatch)
    await everything_happens(Observer())
    assert made == []


@pytest.mark.parametrize("hook", HOOKS)
async def test_only_the_events_that_are_wanted_are_made(
    monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    kept: list[Any] = []
    made = counting_events(monkeypatch)
    await everything_happens(keeping("def", hook, kept)())
    assert made == [type(event).__name__ for event in kept]
    assert len(set(made)) == 1


async def test_one_event_is_made_for_all_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counting_events(monkeypatch)
    recorders = [RecordingObserver(), RecordingObserver()]
    await everything_happens(*recorders)
    assert len(made) == len(recorders[0].events)
    assert all(a is b for a, b in zip(recorders[0].events, recorders[1].events, strict=True))


async def test_hooks_are_looked_up_once_for_all_tasks() -> None:
    """No attribute of an observer is read for a task, whether it has the hook or not."""
    looked_up: list[str] = []

    class Watched(Observer):
        def __getattribute__(self, name: str) -> Any:
            looked_up.append(name)
            return super().__getattribute__(name)

        def on_task_failed(self, event: TaskFailed) -> None:
            pass

    async with Manager(observers=[Watched()]) as manager:
        assert looked_up
        looked_up.clear()
        for _ in range(3):
            await manager.run(fine)
            await manager.run(broken).wait()
        assert looked_up == []
