"""Rule 11: whoever else is told, a failure is never lost."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, retry_if_result, stop_after_attempt, wait_fixed

from background import Manager, Observer, Task, TaskEvent, TaskFailed, TaskKind, TaskStatus, every


async def fail() -> None:
    await checkpoint()
    raise ValueError("wrong")


async def fail_after(seconds: float) -> None:
    await anyio.sleep(seconds)
    raise ValueError("wrong")


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the failures that the log tells of."""
    found: list[str] = []
    for record in caplog.records:
        if record.name == "background" and record.msg.startswith("task "):
            assert record.levelno == logging.ERROR
            assert record.exc_info is not None
            found.append(str(record.exc_info[1]))
    return found


class Told(Observer):
    def __init__(self) -> None:
        self.errors: list[str] = []

    def on_task_failed(self, event: TaskFailed) -> None:
        self.errors.append(str(event.error))


class ToldSlowly(Told):
    async def on_task_failed(self, event: TaskFailed) -> None:  # type: ignore[override]
        await anyio.sleep(1)
        self.errors.append(str(event.error))


class ToldBySomethingAwaitable(Told):
    def on_task_failed(self, event: TaskFailed) -> Awaitable[None]:  # type: ignore[override]
        async def note() -> None:
            await anyio.sleep(1)
            self.errors.append(str(event.error))

        return note()


class Raising(Told):
    def on_task_failed(self, event: TaskFailed) -> None:
        raise LookupError("hook")


class Elsewhere(Observer):
    """Interested in all but failures."""

    def on_task_added(self, event: TaskEvent) -> None: ...

    on_task_started = on_task_retrying = on_task_succeeded = on_task_added
    on_task_cancelled = on_task_expired = on_task_stalled = on_task_added


class Hanging(Told):
    async def on_task_failed(self, event: TaskFailed) -> None:  # type: ignore[override]
        self.errors.append(str(event.error))
        await anyio.sleep_forever()


OBSERVERS = {
    "nobody": ([], False),
    "other hooks": ([Elsewhere], False),
    "def": ([Told], True),
    "async def": ([ToldSlowly], True),
    "def that returns an awaitable": ([ToldBySomethingAwaitable], True),
    "raising": ([Raising], False),
    "raising and def": ([Raising, Told], True),
    "def and raising": ([Told, Raising], True),
    "raising and other hooks": ([Raising, Elsewhere], False),
}


@pytest.mark.parametrize("whose", ["manager's", "task's"])
@pytest.mark.parametrize("waited", [False, True], ids=["not waited for", "waited for"])
@pytest.mark.parametrize("kind", ["one-off", "last iteration", "iteration"])
@pytest.mark.parametrize(("classes", "told"), OBSERVERS.values(), ids=OBSERVERS)
async def test_failure_is_logged_unless_somebody_is_told(
    caplog: pytest.LogCaptureFixture,
    anyio_backend: object,
    classes: list[type[Observer]],
    told: bool,
    kind: str,
    waited: bool,
    whose: str,
) -> None:
    """Whoever waits for a loop learns of the failure that ends it, but not of those before."""
    observers = tuple(each() for each in classes)
    options: dict[str, Any] = {"observers": observers if whose == "task's" else ()}
    if kind != "one-off":
        options |= {"kind": TaskKind.LOOP, "schedule": every(100)}
    if kind == "last iteration":
        options |= {"max_failures": 1}
    async with Manager(observers=observers if whose == "manager's" else ()) as manager:
        handle = manager.run_task(Task(fail, **options))
        async with anyio.create_task_group() as waiters:
            if waited:
                waiters.start_soon(expect, handle)
            await anyio.sleep(10)
            if kind == "iteration":
                handle.cancel()
    silent = told or (waited and kind != "iteration")
    assert logged(caplog) == ([] if silent else ["wrong"])
    for observer in observers:
        if isinstance(observer, Told) and not isinstance(observer, Raising):
            assert observer.errors == ["wrong"]


async def expect(handle: Any) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        await handle


async def test_what_the_log_says(caplog: pytest.LogCaptureFixture, manager: Manager) -> None:
    manager.run_task(Task(fail, name="send", id="42"))
    await manager.wait()
    assert logged(caplog) == []  # the fixture's recorder is told
    async with Manager() as unobserved:
        handle = unobserved.run_task(Task(fail, name="send", id="42"))
    (record,) = (each for each in caplog.records if each.name == "background")
    assert (record.name, record.levelname) == ("background", "ERROR")
    assert "send" in record.getMessage()
    assert "42" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is handle.error
    assert 'raise ValueError("wrong")' in caplog.text


# Waiters


async def test_waiter_that_has_left_is_no_waiter(caplog: pytest.LogCaptureFixture) -> None:
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        with anyio.move_on_after(5):
            await handle
    assert logged(caplog) == ["wrong"]


async def test_one_waiter_of_several_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        async with anyio.create_task_group() as waiters:
            waiters.start_soon(expect, handle)
            with anyio.move_on_after(5):
                await handle
    assert logged(caplog) == []


async def test_waiter_that_comes_later_gets_the_error_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Manager() as manager:
        handle = manager.run(fail)
        await manager.wait()
        assert logged(caplog) == ["wrong"]
        with pytest.raises(ValueError, match="wrong"):
            await handle
    assert logged(caplog) == ["wrong"]


async def test_waiter_that_is_cancelled_in_the_step_in_which_the_task_fails(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    """The error was meant for it, but it never gets to see it."""
    scope = anyio.CancelScope()
    got: list[str] = []

    async def fail_and_cancel() -> None:
        scope.cancel()
        raise ValueError("wrong")

    async with Manager() as manager:
        handle = manager.run(fail_and_cancel)
        with scope:
            try:
                await handle
            except ValueError as error:
                got.append(str(error))
    assert [*got, *logged(caplog)] == ["wrong"]


async def test_timeout_of_the_waiter_in_the_moment_of_the_failure(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    got: list[str] = []
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        with anyio.move_on_at(anyio.current_time() + 10):
            try:
                await handle
            except ValueError as error:
                got.append(str(error))
    assert [*got, *logged(caplog)] == ["wrong"]


async def test_waiting_for_all_is_waiting_for_no_result(caplog: pytest.LogCaptureFixture) -> None:
    async with Manager() as manager:
        manager.run(fail)
        await manager.wait()
        assert logged(caplog) == ["wrong"]


# Attempts, iterations, ends that are no failures


async def test_attempt_that_is_retried_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    policy = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(1))
    async with Manager(retry=policy) as manager:
        manager.run(fail)
    assert logged(caplog) == ["wrong"]


async def test_result_that_the_policy_refuses_is_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refuse = AsyncRetrying(stop=stop_after_attempt(1), retry=retry_if_result(lambda value: True))
    async with Manager(retry=refuse) as manager:
        handle = manager.run(checkpoint)
    assert handle.status is TaskStatus.FAILED
    assert logged(caplog) == [str(handle.error)]


async def test_every_failed_iteration_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Manager() as manager:
        manager.every(10, fail)
        await anyio.sleep(35)
    assert logged(caplog) == ["wrong"] * 4


async def test_cancellation_and_expiry_are_no_failures(caplog: pytest.LogCaptureFixture) -> None:
    async with Manager() as manager:
        cancelled = manager.run(anyio.sleep_forever)
        expired = manager.run_task(Task(anyio.sleep_forever, lifespan=5))
        manager.after(100, fail)
        await anyio.sleep(10)
        cancelled.cancel()
        await manager.close(timeout=0)
    assert expired.status is TaskStatus.EXPIRED
    assert not [record for record in caplog.records if record.name == "background"]


async def test_timeout_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with Manager() as manager:
        manager.run_task(Task(anyio.sleep_forever, timeout=5))
    assert len(logged(caplog)) == 1
    assert "timeout of 5 s" in logged(caplog)[0]


async def test_failure_of_a_task_that_nobody_started_cleaning_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cancelled task that fails has failed."""

    async def clean_up_badly() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("wrong")

    async with Manager() as manager:
        manager.run(clean_up_badly)
        await anyio.sleep(1)
        await manager.close(timeout=0)
    assert logged(caplog) == ["wrong"]


async def test_critical_failure_is_logged_as_well(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ExceptionGroup):
        async with Manager() as manager:
            manager.run_task(Task(fail, critical=True))
            await anyio.sleep_forever()
    assert logged(caplog) == ["wrong"]


@pytest.mark.parametrize("told", [False, True], ids=["nobody told", "told"])
async def test_critical_failure_and_observers(
    caplog: pytest.LogCaptureFixture, anyio_backend: object, told: bool
) -> None:
    observer = Told()
    with pytest.raises(ExceptionGroup):
        async with Manager(observers=[observer] if told else []) as manager:
            manager.run_task(Task(fail, critical=True))
            await anyio.sleep_forever()
    assert logged(caplog) == ([] if told else ["wrong"])
    assert observer.errors == (["wrong"] if told else [])


async def test_failure_while_the_manager_closes(caplog: pytest.LogCaptureFixture) -> None:
    async with Manager() as manager:
        handle = manager.run(fail_after, 10)
        report = await manager.close()
    assert report.failed == (handle,)
    assert logged(caplog) == ["wrong"]


async def test_failure_after_the_manager_has_closed(caplog: pytest.LogCaptureFixture) -> None:
    """Of a task that was stuck, and left behind."""

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
        raise ValueError("wrong")

    async with Manager(cancel_timeout=1) as manager:
        handle = manager.run(shielded)
        await anyio.sleep(1)
        report = await manager.close(timeout=0)
        assert report.stuck == (handle,)
    assert logged(caplog) == []
    assert await handle.wait() is TaskStatus.FAILED
    assert str(handle.error) == "wrong"


# Hooks that let one down


async def test_raising_hook_is_logged_once_and_each_failure_by_itself(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    async with Manager(observers=[Raising()]) as manager:
        for _ in range(3):
            manager.run(fail)
            await manager.wait()
    assert logged(caplog) == ["wrong"] * 3
    hooks = [r.exc_info[1] for r in caplog.records if "hook" in str(r.exc_info and r.exc_info[1])]
    assert len(hooks) == 1
    assert "raised 3 exceptions in all" in caplog.text


async def test_failures_that_overflow_an_async_hook_are_logged(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    """It takes a thousand or so; what it has no room for, nobody else is told of."""
    hanging = Hanging()
    async with Manager(observers=[hanging], cancel_timeout=1) as manager:
        for _ in range(1500):
            manager.run(fail)
        await manager.wait()
        dropped = manager.health().events_dropped
        assert 0 < dropped < 1500
        assert logged(caplog) == ["wrong"] * dropped


async def test_failures_that_a_hanging_hook_never_gets_to_are_logged(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    """They were taken, but when the manager has closed nobody has been told of them.

    Whether that holds for the one in which it hangs as well is a matter of opinion.
    """
    hanging = Hanging()
    async with Manager(observers=[hanging], cancel_timeout=1) as manager:
        for _ in range(5):
            manager.run(fail)
    assert len(hanging.errors) == 1
    assert logged(caplog) in (["wrong"] * 4, ["wrong"] * 5)


async def test_overflowing_hook_beside_one_that_is_told(
    caplog: pytest.LogCaptureFixture, anyio_backend: object
) -> None:
    told, slow = Told(), ToldSlowly()
    async with Manager(observers=[slow, told], cancel_timeout=10_000) as manager:
        for _ in range(1500):
            manager.run(fail)
    assert 0 < len(slow.errors) < len(told.errors) == 1500
    assert logged(caplog) == []
