"""Observers that misbehave in every hook, with tasks and jobs of every outcome.

Besides the tests of raising and hanging hooks, these use all outcomes, observers of the manager and
of the task, and hooks that call the manager.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.outcomes import (
    HOOKS,
    JOBS,
    SCENARIOS,
    TWICE,
    Scenario,
    broken,
    call_every_hook,
    fine,
    nap,
    play_in,
    play_job,
    run_dying_job,
)

from background import (
    BackgroundError,
    Manager,
    ManagerState,
    Observer,
    Task,
    TaskAdded,
    TaskFailed,
    TaskKind,
    TaskStarted,
    TaskStatus,
)
from background.testing import RecordingObserver

SIZE = 1024  # maximum of events that wait for one observer
CATCH_UP = 1.0  # seconds, the cancel_timeout of the managers here

T = TypeVar("T")

Act = Callable[[Any, Any], Any]


def misbehaving(act: Act, hooks: list[str] = HOOKS, **more: Any) -> Observer:
    """Make an observer with the same behaviour in all these hooks."""
    return type("Misbehaving", (Observer,), dict.fromkeys(hooks, act) | more)()


def recurse() -> int:
    return 1 + recurse()


async def cancellation() -> BaseException:
    """Return a real cancellation of the running backend, caught in its own scope."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as error:
            caught = error
            raise
    return caught


# Misbehaviour of hooks


class Odd(BaseException):
    """A BaseException that does not end a program."""


class Undecided(Exception):
    def __bool__(self) -> NoReturn:
        raise ZeroDivisionError


class Liar:
    @property
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise ZeroDivisionError


class Unclosable:
    """An awaitable that never returns and whose `close()` raises."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from anyio.sleep_forever().__await__()

    def close(self) -> NoReturn:
        raise ZeroDivisionError


def raises(make: Callable[[], BaseException]) -> Act:
    def act(self: Observer, event: object) -> None:
        raise make()

    return act


def raises_later(make: Callable[[], BaseException]) -> Act:
    async def act(self: Observer, event: object) -> None:
        await checkpoint()
        raise make()

    return act


def recurses(self: Observer, event: object) -> None:
    recurse()


async def recurses_later(self: Observer, event: object) -> None:
    recurse()


def takes_all_memory(self: Observer, event: object) -> None:
    bytearray(1 << 60)


def returns(make: Callable[[], object]) -> Act:
    def act(self: Observer, event: object) -> object:
        return make()

    return act


def returns_one_coroutine(self: Any, event: object) -> object:
    """Return the same coroutine each time, which can be awaited only once."""
    if not hasattr(self, "coroutine"):
        self.coroutine = anyio.sleep(0.1)
    return self.coroutine


async def hangs(self: Observer, event: object) -> None:
    await anyio.sleep_forever()


async def swallows(self: Observer, event: object) -> None:
    until = anyio.current_time() + 500
    while anyio.current_time() < until:
        with suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
            await anyio.sleep(100)


async def is_slow(self: Observer, event: object) -> None:
    await anyio.sleep(0.4)


async def leaves_a_scope_open(self: Observer, event: object) -> None:
    anyio.CancelScope().__enter__()
    await checkpoint()


WRONG: dict[str, Act] = {
    "raises": raises(lambda: ValueError("hook")),
    "raises a BaseException": raises(lambda: Odd("hook")),
    "raises GeneratorExit": raises(GeneratorExit),
    "raises an undecided error": raises(Undecided),
    "takes all memory": takes_all_memory,
    "returns a coroutine that hangs": returns(anyio.sleep_forever),
    "returns one coroutine": returns_one_coroutine,
    "returns what hangs and can't be closed": returns(Unclosable),
    "returns what lies about its class": returns(Liar),
    "raises later": raises_later(lambda: ValueError("hook")),
    "raises GeneratorExit later": raises_later(GeneratorExit),
    "raises an undecided error later": raises_later(Undecided),
    "hangs": hangs,
    "swallows its cancellation": swallows,
    "is slow": is_slow,
    "leaves a scope open": leaves_a_scope_open,
}
# Separate, as tracebacks of a thousand lines take long.
LONG: dict[str, Act] = {"recurses": recurses, "recurses later": recurses_later}
ENDLESS = {name for name in WRONG if "swallows" in name}  # services are waited for, too


async def play(scenario: Scenario, *observers: Observer, own: tuple[Observer, ...] = ()) -> Manager:
    """Run a task to its outcome, observed by the manager's and its own observers."""
    async with Manager(observers=observers, limit=1, cancel_timeout=CATCH_UP) as manager:
        await play_in(manager, scenario, *own)
    return manager


def stable_fields(recorder: RecordingObserver) -> list[tuple[object, ...]]:
    """Return the parts of the events that are the same in every run."""
    fields = ("kind", "iteration", "attempt", "reason", "final", "delay", "lifespan")
    return [
        (
            name,
            type(getattr(event, "error", None)),
            *(getattr(event, field, None) for field in fields),
        )
        for name, event in zip(recorder.names(), recorder.events, strict=True)
    ]


async def timed(awaitable: Awaitable[T]) -> tuple[float, T]:
    began = anyio.current_time()
    answer = await awaitable
    return anyio.current_time() - began, answer


@pytest.fixture(scope="module")
def normal() -> dict[str, tuple[float, object]]:
    """The duration and the events without misbehaving observers, by outcome."""
    return {}


@pytest.mark.parametrize("wrong", WRONG)
async def test_tasks_unaffected(
    wrong: str,
    normal: dict[str, tuple[float, object]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A misbehaving observer changes no event of another observer, and closing stays in time."""
    caplog.set_level("CRITICAL", "background")  # formatting tracebacks takes long
    extra = CATCH_UP * (3 if wrong in ENDLESS else 2) + 0.01
    for name, scenario in SCENARIOS.items():
        if name not in normal:
            expected = RecordingObserver()
            took, _ = await timed(play(scenario, expected))
            normal[name] = took, stable_fields(expected)
        recorder = RecordingObserver()
        bad, own = misbehaving(WRONG[wrong]), misbehaving(WRONG[wrong])
        took, manager = await timed(play(scenario, bad, recorder, own=(own,)))
        assert stable_fields(recorder) == normal[name][1], name
        assert took <= normal[name][0] + extra, name
        assert manager.state is ManagerState.CLOSED, name
        assert manager.count() == 0, name
        health = manager.health()
        if wrong != "is slow":
            assert health.hook_errors + health.events_dropped > 0, name


@pytest.mark.parametrize("wrong", WRONG)
async def test_jobs_unaffected(
    wrong: str, normal: dict[str, tuple[float, object]], caplog: pytest.LogCaptureFixture
) -> None:
    """A misbehaving observer changes neither the events nor the final state of jobs."""
    caplog.set_level("CRITICAL", "background")
    extra = CATCH_UP * (3 if wrong in ENDLESS else 2) + 0.01
    for name, scenario in JOBS.items():
        if name not in normal:
            expected = RecordingObserver()
            took, _ = await timed(play_job(scenario, expected))
            normal[name] = took, stable_fields(expected)
        recorder = RecordingObserver()
        bad, own = misbehaving(WRONG[wrong]), misbehaving(WRONG[wrong])
        took, id = await timed(play_job(scenario, bad, recorder, own=(own,)))
        assert stable_fields(recorder) == normal[name][1], name
        assert recorder.names(id) == scenario.order.split(), name
        assert took <= normal[name][0] + extra, name


async def test_hook_raises_cancellation() -> None:
    """A hook that raises a stale cancellation of the backend only counts as an error."""
    caught = await cancellation()
    for act in (raises(lambda: caught), raises_later(lambda: caught)):
        expected, recorder = RecordingObserver(), RecordingObserver()
        await call_every_hook(expected)
        manager = await call_every_hook(misbehaving(act), recorder)
        assert stable_fields(recorder) == stable_fields(expected)
        assert manager.health().hook_errors == len(recorder.events)


@pytest.mark.parametrize("wrong", WRONG | LONG)
async def test_single_hooks(wrong: str) -> None:
    """A single misbehaving hook changes no event of another observer."""
    expected = RecordingObserver()
    normally, _ = await timed(call_every_hook(expected))
    for hook in HOOKS:
        recorder = RecordingObserver()
        bad = misbehaving((WRONG | LONG)[wrong], [hook])
        took, manager = await timed(call_every_hook(bad, recorder))
        assert stable_fields(recorder) == stable_fields(expected), hook
        assert took <= normally + CATCH_UP * (2 if wrong in ENDLESS else 1) + 0.01, hook
        assert manager.state is ManagerState.CLOSED, hook


# Too slow


@pytest.mark.parametrize("later", [False, True], ids=["async def", "def returns"])
async def test_overflow(later: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Events are delivered or counted as dropped, with one log record at first and a total."""
    delivered: list[object] = []

    async def deliver(self: Observer, event: object) -> None:
        await anyio.sleep(0.01)
        delivered.append(event)

    def call_deliver(self: Observer, event: object) -> Awaitable[None]:
        return deliver(self, event)

    slow, recorder = misbehaving(call_deliver if later else deliver), RecordingObserver()
    began = anyio.current_time()
    async with Manager(observers=[slow, recorder], cancel_timeout=CATCH_UP) as manager:
        for _ in range(250):
            manager.run(fine)
            manager.run(nap, 3).cancel()
            manager.run_task(Task(nap, lifespan=1))
            manager.run_task(Task(broken, retry=TWICE))
        await anyio.sleep(2)
        await manager.wait()
    assert anyio.current_time() - began <= 5 + CATCH_UP + 0.01
    dropped = manager.health().events_dropped
    assert dropped == len(recorder.events) - len(delivered)
    assert dropped > len(recorder.events) - SIZE - 700
    assert recorder.names().count("succeeded") == recorder.names().count("failed") == 250
    messages = [
        record.getMessage()
        for record in caplog.records
        if "Misbehaving" in record.msg % record.args
    ]
    assert [message.partition(" is too slow")[0] for message in messages[:1]] == [
        "Observer hook Misbehaving.on_task_added"
    ]
    assert messages[1:] == [f"Observer Misbehaving missed {dropped} events."]
    print(f"{len(recorder.events)} events, {dropped} dropped, {len(delivered)} delivered")


@pytest.mark.parametrize("of_manager", [True, False], ids=["manager", "task"])
async def test_failures_with_hanging_hook(
    of_manager: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures that a hanging hook never receives are logged."""
    hanging = misbehaving(hangs, ["on_task_failed"])
    observers, own = ([hanging], ()) if of_manager else ([], (hanging,))
    async with Manager(observers=observers, cancel_timeout=CATCH_UP) as manager:
        handles = [manager.run_task(Task(broken, observers=own)) for _ in range(5)]
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert sorted(map(id, logged)) == sorted(id(handle.error) for handle in handles)
    assert manager.health().events_dropped == 5


@pytest.mark.parametrize("of_manager", [True, False], ids=["manager", "task"])
async def test_failure_of_stuck_task(of_manager: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A failure after the manager was left is logged, as async hooks no longer run."""
    delivered: list[TaskFailed] = []

    async def deliver(self: Observer, event: TaskFailed) -> None:
        await anyio.sleep(1)
        delivered.append(event)

    async def fails_late() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        raise ValueError("late")

    slow = misbehaving(deliver, ["on_task_failed"])
    observers, own = ([slow], ()) if of_manager else ([], (slow,))
    async with Manager(observers=observers, cancel_timeout=CATCH_UP) as manager:
        handle = manager.run_task(Task(fails_late, observers=own))
        await anyio.sleep(1)
        await manager.close(timeout=0)
    await anyio.sleep(200)
    assert handle.status is TaskStatus.FAILED
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [*logged, *(event.error for event in delivered)] == [handle.error]


# Hooks that call the manager

ONE_OFF = re.compile(r"( started( retrying| stalled)*)? (succeeded|failed|cancelled|expired)")
LOOP = re.compile(
    r"( started( retrying| stalled)* (succeeded|failed))*"
    r"(( started( retrying| stalled)*)? (cancelled|expired)|(?<=failed))"
)


def assert_in_order(recorder: RecordingObserver, why: str) -> None:
    """Check that the events of every task are in a valid order, with one end."""
    for added in recorder.of(TaskAdded):
        # A hook may give a job's id to another task before the event "dead" of the job.
        tasks = " ".join(recorder.names(added.id)).replace(" dead", "").split("added")
        for task in tasks[1:]:  # an id may be used again
            names = task.rstrip()
            assert ONE_OFF.fullmatch(names) or LOOP.fullmatch(names), (why, names)
    assert recorder.names().count("closing") == recorder.names().count("closed") == 1, why
    assert recorder.names().count("dead") <= recorder.names().count("enqueued") <= 1, why


Call = Callable[[Manager, Any], Any]


def cancels_it(manager: Manager, event: Any) -> object:
    return manager.cancel(getattr(event, "id", "none"), reason="by a hook")


def cancels_all(manager: Manager, event: Any) -> object:
    return [handle.cancel("by a hook") for handle in manager.tasks()]


def runs(manager: Manager, event: Any) -> object:
    return manager.run(fine), None


def runs_and_cancels(manager: Manager, event: Any) -> object:
    return manager.run(fine).cancel()


def loops(manager: Manager, event: Any) -> object:
    return manager.every(1, fine), None


def takes_its_id(manager: Manager, event: Any) -> object:
    """Use the id again: it is free when the end of its task is emitted."""
    return manager.run_task(Task(fine, id=getattr(event, "id", None))), None


def requests(manager: Manager, event: Any) -> object:
    return manager.request_shutdown()


def inspects(manager: Manager, event: Any) -> object:
    found = manager.get(getattr(event, "id", "none"))
    return [found, found and found.stack(), manager.tasks(), manager.health(), repr(manager)]


CALLS: dict[str, Call] = {
    "cancels it": cancels_it,
    "cancels all": cancels_all,
    "runs": runs,
    "runs and cancels": runs_and_cancels,
    "loops": loops,
    "takes its id": takes_its_id,
    "requests shutdown": requests,
    "inspects": inspects,
    "stops the loops": lambda manager, event: manager.stop_loops(),
    "waits": lambda manager, event: manager.wait(),
    "closes": lambda manager, event: manager.close(),
    "closes at once": lambda manager, event: manager.close(timeout=0),
    "waits for it": lambda manager, event: (found := manager.get(event.id)) and found.wait(),
}


class Caller:
    """Calls the manager at most 20 times, as it would otherwise never end."""

    def __init__(self, name: str) -> None:
        self.function = CALLS[name]
        self.left = 20
        self.manager: Manager

    def call(self, event: Any) -> Any:
        if self.left and hasattr(self, "manager"):
            self.left -= 1
            with suppress(BackgroundError):
                return self.function(self.manager, event)
        return None

    def hook(self) -> Act:
        def hook(observer: Observer, event: Any) -> Any:
            return self.call(event)

        return hook

    def async_hook(self) -> Act:
        async def hook(observer: Observer, event: Any) -> None:
            answer = self.call(event)
            if isinstance(answer, Awaitable):
                await answer

        return hook


@pytest.mark.parametrize("later", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize("name", CALLS)
async def test_hooks_that_call_manager(name: str, later: bool) -> None:
    """Tasks have one end, in order and in time, whatever a hook calls on the manager."""
    calls = 0
    for hook in HOOKS:
        recorder, caller = RecordingObserver(), Caller(name)
        act = caller.async_hook() if later else caller.hook()
        observer, own = misbehaving(act, [hook]), misbehaving(act, [hook])
        began = anyio.current_time()
        async with Manager(observers=[observer, recorder], cancel_timeout=CATCH_UP) as manager:
            caller.manager = manager
            with suppress(BackgroundError):
                await run_tasks(manager, own, with_job="job" in hook)
            await manager.close(timeout=1)
        assert_in_order(recorder, hook)
        assert anyio.current_time() - began <= 10 + 1 + 3 * CATCH_UP + 0.01, hook
        assert manager.count() == 0
        assert manager.state is ManagerState.CLOSED
        # Events of the manager have no task to wait for, and events of jobs may have none.
        fails = name == "waits for it" and not hook.startswith("on_task")
        assert (manager.health().hook_errors > 0) == fails, hook
        calls += 20 - caller.left
    assert calls > 0


async def run_tasks(manager: Manager, own: Observer, *, with_job: bool = True) -> None:
    """Call every hook of tasks, and optionally of jobs, within ten seconds."""
    running = manager.run_task(Task(nap, args=(3,), observers=(own,)))
    manager.run_task(Task(broken, kind=TaskKind.LOOP, retry=TWICE, observers=(own,)))
    await anyio.sleep(1)
    manager.report_stall(running.id, elapsed=1)
    for task in (Task(fine), Task(broken, retry=TWICE), Task(nap, lifespan=1)):
        manager.run_task(replace(task, observers=(own,)))
    manager.run(nap).cancel()
    with anyio.move_on_after(9):  # a closing manager releases the job, which then never ends
        if with_job:
            await run_dying_job(manager, own)
        await anyio.sleep(9)


AWAITED = ("stops the loops", "waits", "closes", "closes at once", "waits for it")
AT_ONCE = [name for name in CALLS if name not in AWAITED]


class CallsInContext(Observer):
    def __init__(self, where: str, caller: Caller) -> None:
        self.where, self.caller = where, caller

    @contextmanager
    def around_task(self, event: TaskStarted) -> Iterator[None]:  # type: ignore[override]
        if self.where == "enter":
            self.caller.call(event)
        try:
            yield
        finally:
            if self.where == "exit":
                self.caller.call(event)


@pytest.mark.parametrize("where", ["enter", "exit"])
async def test_contexts_that_call_manager(where: str) -> None:
    """Tasks have one end when a context calls the manager on entering or exiting."""
    for name in AT_ONCE:
        recorder, caller = RecordingObserver(), Caller(name)
        observer, own = CallsInContext(where, caller), CallsInContext(where, caller)
        began = anyio.current_time()
        async with Manager(observers=[observer, recorder], cancel_timeout=CATCH_UP) as manager:
            caller.manager = manager
            with suppress(BackgroundError):
                await run_tasks(manager, own)
            await manager.close(timeout=1)
        assert_in_order(recorder, name)
        assert anyio.current_time() - began <= 10 + 1 + CATCH_UP + 0.01, name
        assert manager.count() == 0, name
        assert manager.health().hook_errors == 0, name
        assert caller.left < 20, name


async def watches_and_cancels(manager: Manager) -> None:
    while True:
        cancels_all(manager, None)
        await anyio.sleep(0.5)


async def watches_with_a_scope_open(manager: Manager) -> None:
    anyio.CancelScope().__enter__()
    await anyio.sleep(1)


async def watches_stubbornly(manager: Manager) -> None:
    await swallows(Observer(), manager)


async def watches_the_end(manager: Manager) -> None:
    await manager.shutdown_requested()
    await manager.close()
    await manager.wait()
    await manager.stop_loops()


async def watches_recursively(manager: Manager) -> None:
    recurse()


async def watches_and_closes(manager: Manager) -> None:
    await anyio.sleep(2)
    await manager.close(timeout=1)
    manager.run(fine)


WATCHES = {
    "cancels": (watches_and_cancels, 0),
    "leaves a scope open": (watches_with_a_scope_open, 1),
    "swallows its cancellation": (watches_stubbornly, 0),
    "waits for the end": (watches_the_end, 0),
    "recurses": (watches_recursively, 1),
    "closes": (watches_and_closes, 1),
}


@pytest.mark.parametrize("watch", WATCHES)
async def test_misbehaving_watch(watch: str, recorder: RecordingObserver) -> None:
    """A misbehaving `watch()` harms no task, and its error is counted."""
    service, errors = WATCHES[watch]

    async def watches(self: Observer, manager: Manager) -> None:
        await service(manager)

    bad = misbehaving(watches, ["watch"])
    began = anyio.current_time()
    async with Manager(observers=[bad, recorder], cancel_timeout=CATCH_UP) as manager:
        with suppress(BackgroundError):
            await run_tasks(manager, Observer())
        await manager.close(timeout=1)
    assert_in_order(recorder, watch)
    assert anyio.current_time() - began <= 10 + 1 + 2 * CATCH_UP + 0.01
    assert manager.count() == 0
    assert manager.health().hook_errors == errors
