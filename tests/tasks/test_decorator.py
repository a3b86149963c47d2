"""Options set with the `@task` decorator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import Context
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from background import (
    InvalidTaskError,
    Manager,
    Observer,
    Task,
    TaskEvent,
    TaskExpiredError,
    TaskKind,
    TaskStatus,
    every,
    task,
)
from background.testing import RecordingObserver

OPTIONS: dict[str, Any] = {
    "delay": 5.0,
    "timeout": 10.0,
    "lifespan": 100.0,
    "retry": 3,
    "id": "an id",
    "name": "a name",
    "meta": {"team": "mail"},
    "observers": (RecordingObserver(),),
    "critical": True,
    "stall_after": 7.0,
    "context": Context(),
}
LOOP_OPTIONS: dict[str, Any] = {
    "kind": TaskKind.LOOP,
    "schedule": every(60),
    "max_failures": 4,
}


async def work() -> str:
    await checkpoint()
    return "done"


def decorate(**options: Any) -> Callable[[], Any]:
    @task(**options)
    async def decorated() -> str:
        return await work()

    return decorated


@pytest.mark.parametrize("option", OPTIONS)
def test_option_from_decorator(option: str) -> None:
    """`Task` takes an option from its decorated function."""
    assert getattr(Task(decorate(**{option: OPTIONS[option]})), option) == OPTIONS[option]


@pytest.mark.parametrize("option", LOOP_OPTIONS)
def test_loop_option_from_decorator(option: str) -> None:
    """A loop option makes the function's tasks loops, even if `kind` is not set."""
    described = Task(decorate(**{option: LOOP_OPTIONS[option]}))
    assert getattr(described, option) == LOOP_OPTIONS[option]
    assert described.kind is TaskKind.LOOP


OVERRIDES: dict[str, Any] = {
    "delay": 6.0,
    "timeout": 11.0,
    "lifespan": 101.0,
    "retry": 4,
    "id": "another id",
    "name": "another name",
    "meta": {"team": "web"},
    "observers": (RecordingObserver(),),
    "stall_after": 8.0,
    "context": Context(),
    "schedule": every(61),
    "max_failures": 5,
}


@pytest.mark.parametrize("option", OVERRIDES)
def test_submission_overrides_decorator(option: str) -> None:
    """An option of the submission overrides the decorator's; other options remain."""
    loop = option in LOOP_OPTIONS
    decorated = decorate(**(OPTIONS | (LOOP_OPTIONS if loop else {})))
    described = Task(decorated, **{option: OVERRIDES[option]})
    assert getattr(described, option) == OVERRIDES[option]
    for name in OPTIONS.keys() - {option}:
        assert getattr(described, name) == OPTIONS[name]


def test_decorated_function_unchanged() -> None:
    """The decorator returns the function itself, which can still be called."""

    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    decorated = task(retry=3)(add)
    assert decorated is add
    assert decorated(1, b=2) == 3
    assert decorated.__doc__ == "Add."
    assert decorated.__name__ == "add"


def test_decorator_without_options() -> None:
    """The decorator can be used without options."""
    assert Task(decorate()).retry is None


@pytest.mark.realtime
async def test_decorator_without_parentheses(manager: Manager) -> None:
    """`@task` without parentheses returns the function, which can be submitted."""

    @task
    async def bare() -> str:
        return await work()

    assert await bare() == "done"
    assert await manager.run(bare) == "done"
    assert Task(bare).retry is None
    with pytest.raises(InvalidTaskError, match=r"^fn must be a function, not int$"):
        task(5)  # type: ignore[call-overload]


@pytest.mark.realtime
async def test_single_observer(manager: Manager, recorder: RecordingObserver) -> None:
    """A single observer can be given instead of a collection."""
    single = RecordingObserver()
    async with Manager(observers=single) as other:
        await other.run(work)
        await manager.options(observers=single).run(work)
        await manager.run_task(Task(work, observers=single))
        await manager.run(decorate(observers=single))
    assert single.names().count("succeeded") == 4
    assert recorder.names().count("succeeded") == 3


def test_options_are_copied() -> None:
    """Changes to the caller's `meta` do not change the options, and `meta` is read-only."""
    meta = {"team": "mail"}
    decorated = decorate(meta=meta)
    meta["team"] = "web"
    described = Task(decorated)
    assert described.meta == {"team": "mail"}
    with pytest.raises(TypeError):
        described.meta["team"] = "web"  # type: ignore[index]


def test_wrapped_function() -> None:
    """A wrapper made with `functools.wraps` keeps the options."""
    decorated = decorate(retry=3)

    @functools.wraps(decorated)
    async def wrapper() -> Any:
        return await decorated()

    assert Task(wrapper).retry == 3


def test_function_with_arbitrary_attributes() -> None:
    """A callable with arbitrary attributes has no options.

    The methods of a proxy are such callables; they must not be called to read options.
    """

    class Method:
        def __getattr__(self, name: str) -> Method:
            return Method()

        def __call__(self) -> Any:
            raise AssertionError

    assert Task(Method()).retry is None


def test_decorate_twice() -> None:
    """A second decorator replaces all options of the first."""
    decorated = decorate(retry=3, timeout=5)
    task(retry=4)(decorated)
    assert Task(decorated).retry == 4


class Service:
    @task(name="service", retry=2)
    async def method(self) -> str:
        return await work()

    @staticmethod
    @task(name="static")
    async def static() -> str:
        return await work()


@pytest.mark.realtime
async def test_decorated_methods(manager: Manager) -> None:
    """Methods and static methods can be decorated."""
    handle = manager.run(Service().method)
    assert (handle.name, handle.task.retry) == ("service", 2)
    assert await handle == "done"
    assert manager.run(Service.static).name == "static"


# Submission methods


@pytest.mark.realtime
async def test_options_in_all_submission_methods(manager: Manager) -> None:
    """All submission methods apply the options of the function."""
    one_off = decorate(name="one-off", timeout=10, meta={"a": 1})
    loop = decorate(name="loop", timeout=10, meta={"a": 1}, max_failures=3)
    handles = [
        manager.run(one_off),
        manager.after(0.001, one_off),
        manager.run_task(Task(one_off)),
        await manager.submit(Task(one_off)),
    ]
    loops = [
        manager.loop(one_off),
        manager.loop(loop),
        manager.every(3600, loop),
        manager.cron("@daily", loop),
        manager.run_task(Task(loop)),
        await manager.submit(Task(loop)),
    ]
    for handle in [*handles, *loops]:
        assert handle.task.timeout == 10
        assert handle.meta == {"a": 1}
        assert handle.name in ("one-off", "loop")
    assert {loop.kind for loop in loops} == {TaskKind.LOOP}
    assert [await handle for handle in handles] == ["done"] * 4


@pytest.mark.realtime
async def test_decorated_sync_function(manager: Manager) -> None:
    """A sync function can be decorated."""

    @task(name="sync", timeout=10)
    def add(a: int, b: int) -> int:
        return a + b

    handle = manager.run(add, 1, b=2)
    assert handle.name == "sync"
    assert await handle == 3


async def test_options_take_effect(recorder: RecordingObserver) -> None:
    """The delay, retries, timeout, name and observers of the decorator take effect."""
    observer = RecordingObserver()
    calls: list[float] = []

    @task(delay=5, retry=3, timeout=2, name="flaky", observers=[observer])  # type: ignore[arg-type]
    async def flaky() -> None:
        calls.append(anyio.current_time())
        await anyio.sleep(100 if len(calls) < 3 else 1)

    async with Manager(observers=[recorder], retry=1) as manager:
        began = anyio.current_time()
        await manager.run(flaky)
    assert calls[0] - began == pytest.approx(5)
    assert len(calls) == 3
    for recording in (observer, recorder):
        assert recording.names()[:5] == ["added", "started", "retrying", "retrying", "succeeded"]
        assert recording.events[0].name == "flaky"


async def test_after_overrides_delay(manager: Manager) -> None:
    """`after()` overrides the delay of the decorator."""
    decorated = decorate(delay=5)
    began = anyio.current_time()
    await manager.after(9, decorated)
    assert anyio.current_time() - began == pytest.approx(9)


async def test_lifespan_with_delay_of_call(
    manager: Manager,
) -> None:
    """The lifespan of the decorator must be longer than the delay of the call."""

    @task(lifespan=10)
    async def slow() -> None:
        await anyio.sleep_forever()

    with pytest.raises(InvalidTaskError, match=r"^lifespan must be longer than the delay"):
        manager.after(10, slow)
    with pytest.raises(TaskExpiredError):
        await manager.after(9, slow)


async def test_every_overrides_schedule(manager: Manager) -> None:
    """`every()` overrides the schedule of the decorator."""
    runs: list[float] = []

    @task(schedule=every(10))
    async def tick() -> None:
        runs.append(anyio.current_time())

    decorated, overridden = manager.loop(tick), manager.every(25, tick)
    await anyio.sleep(51)
    assert (decorated.iteration, overridden.iteration) == (6, 3)


async def test_max_failures_from_decorator(manager: Manager) -> None:
    """A loop fails after the decorator's number of failures in a row."""

    @task(max_failures=2)
    async def fail() -> None:
        raise ValueError("wrong")

    loop = manager.loop(fail)
    assert await loop.wait() is TaskStatus.FAILED
    assert loop.iteration == 2


async def test_loop_function_as_one_off(manager: Manager, recorder: RecordingObserver) -> None:
    """`run()` and `after()` reject a function that is declared as a loop."""
    decorated = decorate(schedule=every(60), name="ticker")
    for submit in (manager.run, functools.partial(manager.after, 5)):
        with pytest.raises(InvalidTaskError, match=r"decorated.*loop\(\)"):
            submit(decorated)
    assert manager.count() == 0
    assert recorder.events == []


# Invalid options


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"retry": 0}, "retry"),
        ({"delay": -1}, "delay"),
        ({"timeout": 0}, "timeout"),
        ({"lifespan": 5, "delay": 5}, "lifespan"),
        ({"schedule": 60}, "schedule"),
        ({"schedule": every(60), "kind": TaskKind.ONE_OFF}, "schedule"),
        ({"max_failures": 0}, "max_failures"),
        ({"meta": ["a"]}, "meta"),
        ({"observers": [Observer]}, "observers"),
        ({"id": ""}, "id"),
        ({"name": 1}, "name"),
        ({"critical": 1}, "critical"),
        ({"stall_after": "1"}, "stall_after"),
        ({"context": {}}, "context"),
        ({"kind": "loop"}, "kind"),
    ],
    ids=str,
)
def test_invalid_option(options: dict[str, Any], argument: str) -> None:
    """An invalid option is rejected when the function is decorated."""
    decorator = task(**options)
    with pytest.raises(InvalidTaskError, match=rf"^{argument} "):
        decorator(work)
    assert Task(work).retry is None


def test_decorate_non_function() -> None:
    """The decorator rejects an object that is not callable."""
    with pytest.raises(InvalidTaskError, match=r"^fn "):
        task(retry=3)(5)  # type: ignore[type-var]


@pytest.mark.parametrize("option", ["retries", "args", "fn"])
def test_unknown_option(option: str) -> None:
    """An unknown option is rejected with a list of the valid options."""
    with pytest.raises(TypeError, match=rf"no option {option}; it takes .*retry"):
        task(**{option: 3})


class Watcher(Observer):
    async def watch(self, manager: Manager) -> None: ...


def test_watching_observer() -> None:
    """The decorator rejects observers that implement `watch()`."""
    with pytest.raises(InvalidTaskError, match=r"^observers .*Watcher"):
        task(observers=(Watcher(),))(work)


@pytest.mark.realtime
async def test_observers_of_function(manager: Manager) -> None:
    """Observers of a function receive events of its tasks only."""
    names: list[str] = []

    class NameObserver(Observer):
        def on_task_added(self, event: TaskEvent) -> None:
            names.append(event.name)

    await manager.run(decorate(observers=(NameObserver(),), name="with"))
    await manager.run(decorate(name="without"))
    assert names == ["with"]
