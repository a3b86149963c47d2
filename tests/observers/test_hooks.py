"""Calls of hooks, and the cost of unused hooks."""

from __future__ import annotations

import functools
from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.outcomes import EVENTS, HOOKS, broken, call_every_hook, fine

from background import JobRef, Manager, Observer, TaskAdded, TaskFailed, TaskStarted, TaskSucceeded
from background._execution import emit
from background.testing import RecordingObserver


def make_observer(kind: str, hook: str, received: list[Any]) -> type[Observer]:
    """Return an observer class with one hook of a kind, which records its events."""

    def plain(self: Observer, event: Any) -> None:
        received.append(event)

    async def coroutine(self: Observer, event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        received.append(event)

    def returning(self: Observer, event: Any) -> Awaitable[None]:
        return coroutine(self, event)

    class Awaiting:
        def __init__(self, event: Any) -> None:
            self.event = event

        def __await__(self) -> Any:
            yield from anyio.lowlevel.checkpoint().__await__()
            received.append(self.event)

    def awaitable(self: Observer, event: Any) -> Awaitable[None]:
        return Awaiting(event)

    kinds = {"def": plain, "async def": coroutine, "def of coroutine": returning}
    return type("Keeping", (Observer,), {hook: {**kinds, "def of awaitable": awaitable}[kind]})


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", ["def", "async def", "def of coroutine", "def of awaitable"])
async def test_hook_kinds(kind: str, hook: str, recorder: RecordingObserver) -> None:
    """A hook may be plain, `async def`, or return an awaitable, and receives the same events."""
    received: list[Any] = []
    manager = await call_every_hook(recorder, make_observer(kind, hook, received)())
    pairs = zip(recorder.names(), recorder.events, strict=True)
    assert received == [event for name, event in pairs if hook.endswith(f"_{name}")]
    assert received
    assert manager.health().hook_errors == 0


async def test_hook_on_instance(recorder: RecordingObserver) -> None:
    """A hook may be an attribute of the observer instead of a method."""
    received: list[Any] = []
    observer = Observer()
    observer.on_task_succeeded = received.append  # type: ignore[method-assign]
    async with Manager(observers=[observer, recorder]) as manager:
        await manager.run(fine)
    assert received == recorder.of(TaskSucceeded)


async def test_return_value_of_hook() -> None:
    """A return value of a hook that is not an awaitable is ignored."""

    class Chatty(Observer):
        def on_task_succeeded(self, event: TaskSucceeded) -> Any:
            return "thanks"

    async with Manager(observers=[Chatty()]) as manager:
        await manager.run(fine)
    assert manager.health().hook_errors == 0


async def test_duplicate_observer(recorder: RecordingObserver) -> None:
    """An observer that is passed twice receives an event once."""
    async with Manager(observers=[recorder, recorder]) as manager:
        await manager.run(fine)
    assert recorder.names() == ["added", "started", "succeeded", "closing", "closed"]


async def test_order_of_observers() -> None:
    """Observers are called in the order in which they were passed."""
    order: list[int] = []

    class Numbered(Observer):
        def __init__(self, number: int) -> None:
            self.number = number

        def on_task_succeeded(self, event: TaskSucceeded) -> None:
            order.append(self.number)

    async with Manager(observers=[Numbered(1), Numbered(2), Numbered(3)]) as manager:
        await manager.run(fine)
    assert order == [1, 2, 3]


async def test_task_of_hooks() -> None:
    """`on_task_added` is called in the submitter's task, and other plain hooks in the new one."""
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


def record_new_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the class name of every new event is added."""
    created: list[str] = []

    def counting_init(original: Any) -> Any:
        def counted(self: Any, *args: Any, **kwargs: Any) -> None:
            created.append(type(self).__name__)
            original(self, *args, **kwargs)

        return counted

    def counting_new(kind: type) -> Any:
        created.append(kind.__name__)
        return object.__new__(kind)

    for kind in set(EVENTS) - {JobRef}:  # a field of events, not an event
        monkeypatch.setattr(kind, "__init__", counting_init(kind.__init__))
    monkeypatch.setattr(emit, "_new", counting_new)
    return created


async def test_no_unused_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event is created if no observer has a hook for it."""
    created = record_new_events(monkeypatch)
    await call_every_hook(Observer())
    assert created == []


@pytest.mark.parametrize("hook", HOOKS)
async def test_only_used_events(monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    """Only the events for which an observer has a hook are created."""
    received: list[Any] = []
    created = record_new_events(monkeypatch)
    await call_every_hook(make_observer("def", hook, received)())
    assert created == [type(event).__name__ for event in received]
    assert len(set(created)) == 1


async def test_shared_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """All observers receive the same event object."""
    created = record_new_events(monkeypatch)
    recorders = [RecordingObserver(), RecordingObserver()]
    await call_every_hook(*recorders)
    assert len(created) == len(recorders[0].events)
    assert all(a is b for a, b in zip(recorders[0].events, recorders[1].events, strict=True))


async def test_hook_lookup() -> None:
    """Hooks are looked up when the manager is entered, and not again for a task."""
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


# Names


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("on_task_succeded", "; did you mean on_task_succeeded"),
        ("on_task_fail", "; did you mean on_task_failed"),
        ("on_job_died", "; did you mean on_job_dead"),
        ("on_failure", ", which has on_task_added, on_task_started, .* without on_$"),
    ],
)
@pytest.mark.parametrize(
    "kind", [lambda method: method, staticmethod, classmethod, functools.partial]
)
def test_unknown_hook(name: str, advice: str, kind: Any) -> None:
    """A class with a method that is named like a hook, but is none, can't be defined."""

    def method(self: object, event: object) -> None: ...

    with pytest.raises(TypeError, match=rf"^Misspelt\.{name} is not a hook of Observer{advice}"):
        type("Misspelt", (Observer,), {name: kind(method)})


def test_unknown_hook_of_mixin() -> None:
    """A misspelt hook of a mixin is refused when an observer inherits from it."""

    class Mixin:
        def on_task_succeded(self, event: object) -> None: ...

    with pytest.raises(TypeError, match=r"Mixin\.on_task_succeded is not a hook of Observer; did"):

        class Mixed(Mixin, Observer): ...


def test_methods_of_foreign_class() -> None:
    """An observer may inherit methods of a class that is no observer, and override them."""

    class Button:
        on_click_count = 0

        def on_click(self) -> str:
            return "click"

        def on_release(self) -> str:
            return "release"

    class Both(Observer, Button):
        on_colour = "red"

        def on_click(self) -> str:
            return "own"

    class More(Both):
        def on_release(self) -> str:
            return "more"

    assert (Both().on_click(), Both().on_release(), More().on_release()) == (
        "own",
        "release",
        "more",
    )


def test_subclass_with_keywords() -> None:
    """Keyword arguments of a class definition reach the other base classes."""

    class Base:
        def __init_subclass__(cls, colour: str) -> None:
            cls.colour = colour

    class Painted(Observer, Base, colour="red"): ...

    assert Painted.colour == "red"  # type: ignore[attr-defined]
