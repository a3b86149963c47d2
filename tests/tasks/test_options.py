"""Options of tasks that are submitted as functions."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.time import Clock

from background import (
    InvalidTaskError,
    Manager,
    TaskExpiredError,
    TaskFailed,
    TaskKind,
    TaskStatus,
    cron,
    every,
    retry_on,
    task,
)
from background.testing import RecordingObserver


async def add(a: int, b: int = 1) -> int:
    return a + b


async def test_run(manager: Manager) -> None:
    """`run()` passes the arguments to the function, and the options to the task."""
    handle = manager.options(id="sum", name="add up", meta={"team": "a"}).run(add, 1, b=2)
    assert (handle.id, handle.name, handle.meta) == ("sum", "add up", {"team": "a"})
    assert await handle == 3


async def test_after(manager: Manager, clock: Clock) -> None:
    """`after()` adds a delay to the options."""
    handle = manager.options(lifespan=100).after(60, add, 1)
    assert handle.task.lifespan == 100
    assert await handle == 2
    assert clock.now == 60


async def test_delay(manager: Manager, clock: Clock) -> None:
    """A delay may be an option of `run()`, but not of `after()`, which has one."""
    await manager.options(delay=5).run(add, 1)
    assert clock.now == 5
    with pytest.raises(InvalidTaskError, match="delay is given twice"):
        manager.options(delay=5).after(1, add, 1)


async def test_delay_of_zero(manager: Manager) -> None:
    """A delay of zero is a delay, too."""
    for delay in (0, 0.0):
        with pytest.raises(InvalidTaskError, match="delay is given twice"):
            manager.options(delay=5).after(delay, add, 1)


async def test_observers(manager: Manager) -> None:
    """Observers may come from an iterator, and observe every task of the submission."""
    recorder = RecordingObserver()
    observers: Any = iter([recorder])
    options = manager.options(observers=observers)
    first, second = options.run(add, 1), options.run(add, 2)
    await manager.wait()
    assert (
        recorder.names(first.id) == recorder.names(second.id) == ["added", "started", "succeeded"]
    )


async def test_loops(manager: Manager, clock: Clock) -> None:
    """Every method for loops uses the options, in which a schedule may stand, too."""
    ticks: list[float] = []

    def record() -> None:
        ticks.append(clock.now)

    async def tick() -> None:
        record()

    options = manager.options(delay=1, lifespan=25)
    loops = [
        options.every(10, tick),
        options.schedule(every(10), tick),
        manager.options(delay=1, lifespan=25, schedule=every(10)).loop(tick),
    ]
    for loop in loops:
        with pytest.raises(TaskExpiredError):
            await loop
    assert ticks == [1, 1, 1, 11, 11, 11, 21, 21, 21]
    handle = options.cron("@daily", tick)
    assert (handle.kind, handle.task.schedule) == (TaskKind.LOOP, cron("@daily"))
    handle.cancel()


async def test_schedule(manager: Manager, clock: Clock) -> None:
    """`schedule()` runs a function with its arguments on a schedule."""
    ticks: list[tuple[float, str]] = []

    async def record(label: str) -> None:
        ticks.append((clock.now, label))

    handle = manager.schedule(every(10), record, "a")
    await anyio.sleep(25)
    handle.cancel()
    assert ticks == [(0, "a"), (10, "a"), (20, "a")]


@pytest.mark.parametrize("schedule", [10, "@daily", None])
async def test_invalid_schedule(manager: Manager, schedule: Any) -> None:
    """A schedule must be made by `every()` or `cron()`."""
    with pytest.raises(InvalidTaskError, match=r"^schedule must be"):
        manager.schedule(schedule, add, 1)
    assert manager.count() == 0


async def test_schedule_twice(manager: Manager) -> None:
    """A schedule can't be given in the options and by the method."""
    options = manager.options(schedule=every(10))
    for submit in (
        lambda: options.every(5, add, 1),
        lambda: options.cron("@daily", add, 1),
        lambda: options.schedule(every(5), add, 1),
    ):
        with pytest.raises(InvalidTaskError, match="schedule is given twice"):
            submit()
    assert manager.count() == 0


async def test_one_off_as_loop(manager: Manager) -> None:
    """`run()` and `after()` reject the options of loops, also those of `@task`."""

    @task(schedule=every(1))
    async def declared() -> None: ...

    options = manager.options(kind=TaskKind.LOOP)
    for submit in (lambda: options.run(add, 1), lambda: options.after(1, add, 1)):
        with pytest.raises(InvalidTaskError, match=r"use loop\(\)"):
            submit()
    with pytest.raises(InvalidTaskError, match="declared a loop"):
        manager.options(timeout=1).run(declared)
    options = manager.options(kind=TaskKind.ONE_OFF)
    for submit in (lambda: options.loop(add, 1), lambda: options.every(1, add, 1)):
        with pytest.raises(InvalidTaskError, match=r"use run\(\)"):
            submit()
    assert manager.count() == 0


async def test_options_replace_those_of_function(manager: Manager) -> None:
    """Options of a submission replace those of `@task`."""

    @task(name="declared", timeout=5)
    async def work() -> None: ...

    handle = manager.options(timeout=1).run(work)
    assert (handle.task.timeout, handle.name) == (1, "declared")
    await handle


async def test_kind_of_count(manager: Manager) -> None:
    """Tasks are counted and listed by kind, not by its name."""
    kind: Any = "loop"
    for method in (manager.count, manager.tasks):
        with pytest.raises(ValueError, match=r"^kind must be of type TaskKind"):
            method(kind)


def test_unknown_option() -> None:
    """An option that does not exist is rejected at once."""
    with pytest.raises(TypeError, match="color"):
        Manager().options(color="red")  # type: ignore[call-arg]


def test_repr() -> None:
    """The repr shows the options."""
    assert repr(Manager().options(retry=3, name="a")) == "<Submission with retry=3, name='a'>"


async def test_retry_on(manager: Manager, recorder: RecordingObserver) -> None:
    """`retry_on()` retries the given exceptions for a number of attempts."""
    raised: list[type[Exception]] = []

    async def fail(*errors: type[Exception]) -> None:
        raised.append(errors[len(raised)])
        raise raised[-1]

    options = manager.options(retry=retry_on(OSError, KeyError, attempts=3))
    assert await options.run(fail, KeyError, OSError, KeyError).wait() is TaskStatus.FAILED
    assert raised == [KeyError, OSError, KeyError]
    raised.clear()
    assert await options.run(fail, OSError, ValueError).wait() is TaskStatus.FAILED
    assert raised == [OSError, ValueError]
    assert [event.attempt for event in recorder.of(TaskFailed)] == [3, 2]


@pytest.mark.parametrize(
    ("limits", "low", "high"),
    [({}, 45, 100), ({"timeout": None}, 9, 200), ({"attempts": None, "timeout": 100}, 100, 160)],
)
async def test_limits_of_retry_on(
    manager: Manager, clock: Clock, limits: dict[str, Any], low: float, high: float
) -> None:
    """`retry_on()` gives up after a number of attempts, or after some time."""
    retry = retry_on(OSError, **limits)

    async def fail() -> None:
        await anyio.sleep(1 if "timeout" in limits else 10)
        raise OSError

    handle = manager.options(retry=retry).run(fail)
    await handle.wait()
    assert low <= clock.now <= high
    if limits == {"timeout": None}:
        assert handle.attempt == 10


async def test_retry_on_for_ever(manager: Manager) -> None:
    """Without limits `retry_on()` does not give up."""

    async def fail() -> None:
        raise OSError

    handle = manager.options(retry=retry_on(OSError, attempts=None, timeout=None)).run(fail)
    await anyio.sleep(80_000)
    assert not handle.done
    handle.cancel()


@pytest.mark.parametrize(
    ("exceptions", "limits", "argument"),
    [
        ((), {}, "exceptions"),
        ((ValueError(),), {}, "exceptions"),
        ((BaseException,), {}, "exceptions"),
        ((OSError,), {"attempts": 0}, "attempts"),
        ((OSError,), {"timeout": 0}, "timeout"),
    ],
)
def test_invalid_retry_on(
    exceptions: tuple[Any, ...], limits: dict[str, Any], argument: str
) -> None:
    """Invalid arguments of `retry_on()` are rejected by name."""
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        retry_on(*exceptions, **limits)


def test_final_statuses() -> None:
    """The statuses of tasks that have ended are final."""
    final = {status for status in TaskStatus if status.is_final}
    assert final == {*TaskStatus} - {TaskStatus.WAITING, TaskStatus.RUNNING, TaskStatus.RETRYING}
